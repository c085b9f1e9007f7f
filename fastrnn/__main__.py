"""``python -m fastrnn`` prints what a bug report needs."""

from fastrnn._build import build_info

for name, value in build_info().items():
    print(f"{name:20} {', '.join(value) if isinstance(value, list) else value}")
