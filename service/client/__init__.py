"""`loupe ask`: a running server's client, on nothing but the standard library's HTTP."""
