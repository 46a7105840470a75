{{/* An image by its name: a digest where one is given, else the tag. */}}
{{- define "dunlin.image" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- with index $root.Values.image.digests $name -}}
{{ $root.Values.image.prefix }}{{ $name }}@{{ . }}
{{- else -}}
{{ $root.Values.image.prefix }}{{ $name }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The nodes of the control plane; without them nothing can be reached. */}}
{{- define "dunlin.addresses" -}}
{{- if not .Values.controlPlane.addresses }}
{{- fail "controlPlane.addresses: give the addresses of the nodes that carry the control plane, one or three" }}
{{- end }}
{{- .Values.controlPlane.addresses | toJson }}
{{- end }}

{{- define "dunlin.natsReplicas" -}}
{{- .Values.nats.replicas | default (len (include "dunlin.addresses" . | fromJsonArray)) -}}
{{- end }}

{{/* HOST:PORT, with brackets around an IPv6 address. */}}
{{- define "dunlin.hostPort" -}}
{{- $host := index . 0 | toString -}}
{{- if contains ":" $host }}[{{ $host }}]{{ else }}{{ $host }}{{ end }}:{{ index . 1 }}
{{- end }}

{{- define "dunlin.ovsNodeSelector" -}}
{{- if eq .Values.ovs.datapath "dpdk" }}
{{- toYaml (merge (dict) .Values.ovs.nodeSelector .Values.ovs.dpdk.nodeSelector) }}
{{- else }}
{{- toYaml .Values.ovs.nodeSelector }}
{{- end }}
{{- end }}

{{- define "dunlin.ovsResources" -}}
{{- if eq .Values.ovs.datapath "dpdk" -}}
{{- $pages := .Values.ovs.dpdk.hugepages -}}
{{- $both := dict "requests" (dict "hugepages-2Mi" $pages) "limits" (dict "hugepages-2Mi" $pages) -}}
{{- toYaml (merge (dict) $both .Values.ovs.dpdk.resources) -}}
{{- else -}}
{{- toYaml .Values.ovs.resources -}}
{{- end -}}
{{- end }}

{{/* Ports of the OpenFlow sessions and of the servers' routes, of every node of the control plane. */}}
{{- define "dunlin.targets" -}}
{{- $scheme := index . 1 -}}
{{- $port := index . 2 -}}
{{- $found := list -}}
{{- range include "dunlin.addresses" (index . 0) | fromJsonArray -}}
{{- $found = append $found (print $scheme (include "dunlin.hostPort" (list . $port))) -}}
{{- end -}}
{{- join (index . 3) $found -}}
{{- end }}
