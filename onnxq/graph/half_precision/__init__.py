"""Half precision: float16 and bfloat16 models as input, and as what is written around the integers."""
