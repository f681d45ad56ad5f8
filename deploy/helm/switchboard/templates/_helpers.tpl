{{- define "switchboard.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "switchboard.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "switchboard.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "switchboard.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "switchboard.selector" -}}
app.kubernetes.io/name: {{ include "switchboard.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "switchboard.labels" -}}
{{ include "switchboard.selector" . }}
app.kubernetes.io/part-of: switchboard
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "switchboard.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "switchboard.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "switchboard.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- define "switchboard.secret" -}}
{{- default (include "switchboard.fullname" .) .Values.secret.existingSecret }}
{{- end }}

{{- /* The environment variable of each key of the Secret. */}}
{{- define "switchboard.secretVariables" -}}
redisUrl: SWITCHBOARD_REDIS_URL
databaseUrl: SWITCHBOARD_DATABASE_URL
turnSecret: SWITCHBOARD_TURN_SECRET
jwtSecret: SWITCHBOARD_JWT_SECRET
authorizeToken: SWITCHBOARD_AUTHORIZE_TOKEN
logUsersKey: SWITCHBOARD_LOG_USERS_KEY
{{- end }}

{{- /* The keys of the Secret that nodes read: those that an existing Secret is said to have, or those that have a value here. */}}
{{- define "switchboard.secretKeys" -}}
{{- $secret := .Values.secret }}
{{- $used := dict }}
{{- range $name, $variable := include "switchboard.secretVariables" . | fromYaml }}
{{- $key := index $secret.keys $name }}
{{- if $secret.existingSecret }}
{{- if $key }}{{ $_ := set $used $name $key }}{{ end }}
{{- else if index $secret.values $name }}
{{- $_ := set $used $name (default (kebabcase $name) $key) }}
{{- end }}
{{- end }}
{{- toYaml $used }}
{{- end }}

{{- define "switchboard.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "switchboard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* The environment of a node besides its ConfigMap. */}}
{{- define "switchboard.env" -}}
{{- $variables := include "switchboard.secretVariables" . | fromYaml }}
{{- range $name, $key := include "switchboard.secretKeys" . | fromYaml }}
- name: {{ index $variables $name }}
  valueFrom:
    secretKeyRef:
      name: {{ include "switchboard.secret" $ }}
      key: {{ $key }}
{{- end }}
{{- include "switchboard.moreEnv" . }}
{{- end }}

{{- /* The environment of each pod besides the settings: where its authorities are, and `extraEnv`. */}}
{{- define "switchboard.moreEnv" -}}
{{- if .Values.privateCa }}
- name: SSL_CERT_DIR
  value: /etc/ssl/certs:/etc/switchboard/ca
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "switchboard.mounts" -}}
{{- if or .Values.privateCa .Values.extraVolumeMounts -}}
volumeMounts:
  {{- if .Values.privateCa }}
  - name: ca
    mountPath: /etc/switchboard/ca
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "switchboard.volumes" -}}
{{- if or .Values.privateCa .Values.extraVolumes -}}
volumes:
  {{- if .Values.privateCa }}
  - name: ca
    configMap:
      name: {{ .Values.privateCa }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
