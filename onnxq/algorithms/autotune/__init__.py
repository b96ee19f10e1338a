"""Keep nodes in float where float is faster, according to times measured on this machine."""
