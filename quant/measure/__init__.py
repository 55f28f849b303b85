"""What measures models and makes dummy ones: decoding, roofline, random weights."""
