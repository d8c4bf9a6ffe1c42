def as_html(joined): return ""
