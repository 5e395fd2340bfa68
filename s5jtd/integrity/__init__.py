"""Why a copy is believed right: hashing the bytes once, and judging what both ends say of them."""
