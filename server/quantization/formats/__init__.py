"""Weight formats, one a file: `base` is what each must say, `registry` lists them."""
