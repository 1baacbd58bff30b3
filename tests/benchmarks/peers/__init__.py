"""What tests/benchmarks/load.py measures the service against: the bundled model behind other servers.

Each is written as its own documentation has a classifier of uploaded files, for a machine of two cores; all of them
share `classifier.py`. They answer POST /classify with a multipart field `file`.
"""
