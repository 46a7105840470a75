"""`helm install dunlin k8s/chart` by Helm's own engine; KUBECONFIG CHART, values on stdin."""

import json
import sys
from pathlib import Path

import helm_python as helm

NAMESPACE = "dunlin-system"

with (
    helm.Config(kubeconfig_content=Path(sys.argv[1]).read_text(), namespace=NAMESPACE) as config,
    helm.Chart.load(sys.argv[2]) as chart,
):
    release = config.install(chart, "dunlin", json.load(sys.stdin), create_namespace=True)
    print(release["status"])
