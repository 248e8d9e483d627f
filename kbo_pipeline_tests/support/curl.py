"""`python -m kbo_pipeline_tests.support.curl`: the part of curl that docs/api.md needs."""

import argparse
import sys

import requests


def main() -> None:
    """Sends one request and prints the answer; options that curl has besides are errors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("-s", action="store_true", required=True)
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("-X", dest="method")
    parser.add_argument("-d", dest="text")
    parser.add_argument("--data-binary", choices=["@-"])
    asked = parser.parse_args()
    headers = dict(header.split(": ", 1) for header in asked.headers)
    body = sys.stdin.buffer.read() if asked.data_binary else (asked.text or "").encode() or None
    method = asked.method or ("GET" if body is None else "POST")
    answer = requests.request(method, asked.address, headers=headers, data=body, timeout=120)
    sys.stdout.write(answer.text)


if __name__ == "__main__":
    main()
