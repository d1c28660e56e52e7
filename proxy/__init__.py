"""The gateway: what a request passes through, from the socket to the receipt."""
