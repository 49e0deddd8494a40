"""HTTP/1.1 and its bounds: connections, heads, bodies, events, errors. Knows no dialect."""
