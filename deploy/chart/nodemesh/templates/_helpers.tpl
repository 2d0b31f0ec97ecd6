{{/* Labels of every object. */}}
{{- define "nodemesh.labels" -}}
app.kubernetes.io/part-of: nodemesh
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* An image: a list of the root, its name, its digest. */}}
{{- define "nodemesh.image" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $digest := index . 2 -}}
{{- $image := printf "%s/%s" $root.Values.image.repository $name -}}
{{- if $digest }}{{ printf "%s@%s" $image $digest }}
{{- else }}{{ printf "%s:%s" $image (default $root.Chart.AppVersion $root.Values.image.tag) }}{{ end }}
{{- end }}

{{- define "nodemesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "nodemesh.trustConfigMap" -}}
{{ default "nodemesh-trust" .Values.trust.configMapName }}
{{- end }}

{{/* The Secret with the intermediate's chain (and, but for PKCS#11, its key). */}}
{{- define "nodemesh.signerSecret" -}}
{{- if .Values.signer.pkcs11.uri }}{{ .Values.signer.pkcs11.chainSecretName }}
{{- else if .Values.signer.certManager.issuerName }}nodemesh-signer
{{- else }}{{ .Values.signer.secretName }}{{ end }}
{{- end }}

{{/* Bears the start-up taint, whatever its effect: control and agents come before it goes. */}}
{{- define "nodemesh.startupToleration" -}}
{{- with .Values.startupTaint -}}
- {key: {{ . }}, operator: Exists}
{{- end }}
{{- end }}
