"""The dashboard as code, the rules and the provisioning. Not part of the wheel."""
