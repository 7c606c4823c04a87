{{- define "needle.name" -}}
{{- .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 52 characters at most: the pods' names, which are the nodes' names, have a number behind it. */}}
{{- define "needle.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "needle.selectorLabels" -}}
app.kubernetes.io/name: {{ include "needle.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "needle.labels" -}}
{{ include "needle.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "needle.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "needle.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* host:port of the node with a number. */}}
{{- define "needle.address" -}}
{{- $name := include "needle.fullname" .root -}}
{{- printf "%s-%d.%s-nodes.%s.svc:%d" $name (int .number) $name .root.Release.Namespace (int .root.Values.service.port) -}}
{{- end -}}

{{- define "needle.founders" -}}
{{- $root := . -}}
{{- $name := include "needle.fullname" . -}}
{{- $nodes := list -}}
{{- range $n := until (int .Values.founders) -}}
{{- $nodes = append $nodes (printf "%s-%d=%s" $name $n (include "needle.address" (dict "root" $root "number" $n))) -}}
{{- end -}}
{{- join "," $nodes -}}
{{- end -}}

{{- define "needle.seeds" -}}
{{- $root := . -}}
{{- $nodes := list -}}
{{- range $n := until (int .Values.founders) -}}
{{- $nodes = append $nodes (include "needle.address" (dict "root" $root "number" $n)) -}}
{{- end -}}
{{- join "," $nodes -}}
{{- end -}}

{{/* What cannot work is refused before anything is installed. */}}
{{- define "needle.check" -}}
{{- if or (lt (int .Values.founders) 1) (gt (int .Values.founders) 7) -}}
{{- fail (printf "founders is %v: 1 to 7 nodes found a cluster" .Values.founders) -}}
{{- end -}}
{{- if lt (int .Values.replicas) (int .Values.founders) -}}
{{- fail (printf "replicas is %v, fewer than the %v founders" .Values.replicas .Values.founders) -}}
{{- end -}}
{{- if and (not .Values.insecure) (or (not .Values.auth.existingSecret) (not .Values.tls.existingSecret)) -}}
{{- fail "set auth.existingSecret and tls.existingSecret, or insecure=true where the network keeps strangers out" -}}
{{- end -}}
{{- range $name := list "node_id" "cluster_nodes" "data_dir" "listen" "advertise" "http_address" "cluster_secret" "tls" -}}
{{- if hasKey $.Values.settings $name -}}
{{- fail (printf "settings.%s is what the chart sets itself" $name) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (default dict .Values.settings.sharding) "join" -}}
{{- fail "settings.sharding.join is what the chart sets itself" -}}
{{- end -}}
{{- end -}}

{{- define "needle.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote -}}
{{- end -}}
