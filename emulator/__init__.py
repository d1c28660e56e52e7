"""An emulated GPU host (a later issue builds it; nothing here yet pretends to be one)."""
