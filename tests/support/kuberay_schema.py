"""JSON schemas of KubeRay's `RayCluster` and `RayJob` (ray.io/v1), after the CRDs of KubeRay 1.6.

No package carries the CRDs, so the fields that a person sets are written down here, and unknown ones are refused. Pod
templates are left open: Kubernetes' own schemas (the package `kubernetes-validate`) check them.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
_STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_BOOL: Schema = {"type": "boolean"}
_STRING: Schema = {"type": "string"}
_OPEN: Schema = {"type": "object"}


def _closed(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_POD_TEMPLATE = _closed(["spec"], metadata=_OPEN, spec=_OPEN)
_QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_AUTOSCALER = _closed(
    [],
    version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=_COUNT,
    resources=_closed([], requests=_QUANTITIES, limits=_QUANTITIES),
    image=_STRING,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    securityContext=_OPEN,
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
_HEAD = _closed(
    ["template"],
    template=_POD_TEMPLATE,
    rayStartParams=_STRINGS,
    headService=_OPEN,
    enableIngress=_BOOL,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    resources=_STRINGS,
    labels=_STRINGS,
)
_WORKERS = _closed(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    groupName=_STRING,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT,
    suspend=_BOOL,
    rayStartParams=_STRINGS,
    template=_POD_TEMPLATE,
    scaleStrategy=_OPEN,
    resources=_STRINGS,
    labels=_STRINGS,
)
CLUSTER_SPEC = _closed(
    ["headGroupSpec"],
    rayVersion=_STRING,
    authOptions=_closed([], mode={"enum": ["disabled", "token"]}, enableK8sTokenAuth=_BOOL, secretName=_STRING),
    enableInTreeAutoscaling=_BOOL,
    autoscalerOptions=_AUTOSCALER,
    gcsFaultToleranceOptions=_OPEN,
    headServiceAnnotations=_STRINGS,
    managedBy=_STRING,
    suspend=_BOOL,
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_JOB_SPEC = _closed(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=_STRING,
    rayClusterSpec=CLUSTER_SPEC,
    runtimeEnvYAML=_STRING,
    jobId=_STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterPodTemplate=_POD_TEMPLATE,
    submitterConfig=_closed([], backoffLimit=_COUNT),
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=_STRING,
    backoffLimit=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=_BOOL,
    ttlSecondsAfterFinished=_COUNT,
    suspend=_BOOL,
    metadata=_STRINGS,
    managedBy=_STRING,
    deletionStrategy=_OPEN,
)
_NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[-a-z0-9])?$"}
_METADATA = _closed([], name=_NAME, generateName=_NAME, namespace=_NAME, labels=_STRINGS, annotations=_STRINGS)


def _resource(kind: str, spec: Schema) -> Schema:
    return _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_METADATA,
        spec=spec,
    )


RAY_CLUSTER = _resource("RayCluster", CLUSTER_SPEC)
RAY_JOB = _resource("RayJob", _JOB_SPEC)
