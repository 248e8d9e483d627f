"""How fast it is: ours beside a bare load and beside what people use instead, in one run.

`make bench` writes docs/performance.md; `make bench-small` compares ratios with written limits.
"""
