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

{{/* Text of an nkey. list BYTES KEY: its first bytes, and the 32 of the key; then a CRC-16 (XMODEM, low byte first); in base32. */}}
{{- define "dunlin.nkey" -}}
{{- $bytes := index . 0 }}
{{- $key := index . 1 }}
{{- range until 32 }}{{ $bytes = append $bytes (int (index $key .)) }}{{ end }}
{{- $crc := 0 }}
{{- range $byte := $bytes }}
{{- range $power := list 128 64 32 16 8 4 2 1 }}
{{- $flips := mod (add (div $crc 32768) (div $byte $power)) 2 }}
{{- $crc = mod (mul $crc 2) 65536 }}
{{- range $bit := ternary (list 1 32 4096) list (eq (int $flips) 1) }}
{{- $crc = ternary (sub $crc $bit) (add $crc $bit) (eq (int (mod (div $crc $bit) 2)) 1) }}
{{- end }}
{{- end }}
{{- end }}
{{- $bytes = concat $bytes (list (mod $crc 256) (div $crc 256)) }}
{{- $text := "" }}
{{- $value := 0 }}
{{- $bits := 0 }}
{{- range $byte := append $bytes 0 }}
{{- range $power := list 128 64 32 16 8 4 2 1 }}
{{- $value = add (mul $value 2) (mod (div $byte $power) 2) }}
{{- $bits = add $bits 1 }}
{{- if eq (int (mod $bits 5)) 0 }}
{{- $text = print $text (substr (int $value) (int (add $value 1)) "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") }}
{{- $value = 0 }}
{{- end }}
{{- end }}
{{- end }}
{{- trunc (int (div (add (mul 8 (len $bytes)) 4) 5)) $text }}
{{- end }}

{{/* A new user of NATS as JSON: seed and public. An ed25519 key's last 32 bytes in PKCS#8 are its seed; a certificate tells its public key. */}}
{{- define "dunlin.nkeyPair" -}}
{{- $pem := genPrivateKey "ed25519" }}
{{- $certificate := (genSelfSignedCertWithKey "nkey" list list 1 $pem).Cert }}
{{- $private := regexReplaceAll "-----[^-]+-----|\\s" $pem "" | b64dec }}
{{- $public := index (splitList (b64dec "K2VwAyEA") (regexReplaceAll "-----[^-]+-----|\\s" $certificate "" | b64dec)) 1 }}
{{- $seed := include "dunlin.nkey" (list (list 149 0) (substr 16 48 $private)) }}
{{- dict "seed" $seed "public" (include "dunlin.nkey" (list (list 160) $public)) | toJson }}
{{- end }}
