"""Forms: how a weight is stored that is no codes on a grid, one module each (quant.forms.base)."""
