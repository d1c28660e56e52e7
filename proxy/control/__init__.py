"""Control: the loop that lets a policy act, safely."""
