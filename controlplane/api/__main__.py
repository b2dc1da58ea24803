"""Print the OpenAPI document: `python -m controlplane.api > docs/openapi.json`."""

from __future__ import annotations

import json
import sys

from controlplane.api.app import bare_app
from controlplane.api.openapi import document

json.dump(document(bare_app()), sys.stdout, indent=1, ensure_ascii=False, sort_keys=True)
sys.stdout.write("\n")
