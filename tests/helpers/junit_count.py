# SPDX-License-Identifier: PostgreSQL
"""Print "PASSED FAILED" of a pytest --junitxml file; skipped tests count as neither."""
import sys
import xml.etree.ElementTree as ET

root = ET.parse(sys.argv[1]).getroot()
suites = [root] if root.tag == "testsuite" else root.findall("testsuite")
total = sum(int(s.get("tests")) for s in suites)
bad = sum(int(s.get("failures")) + int(s.get("errors")) for s in suites)
skipped = sum(int(s.get("skipped")) for s in suites)
print(max(total - bad - skipped, 0), bad)
