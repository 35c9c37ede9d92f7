def page(d,s): return []
