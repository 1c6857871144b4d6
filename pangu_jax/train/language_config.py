"""What the language-modeling loss takes unless told otherwise."""

AUX_WEIGHT = 0.01  # of the auxiliary load-balancing loss
