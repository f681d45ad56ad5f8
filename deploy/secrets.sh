#!/bin/sh
# Makes deploy/.env for compose, readable by its owner alone: what .env.example says, with a new secret
# wherever one is left empty. Values that deploy/.env has are kept. Another file may be named instead.
set -eu
folder=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)
target=${1:-$folder/.env}

umask 077
[ -e "$target" ] || cp "$folder/.env.example" "$target"
chmod 600 "$target"
new=$(mktemp "$target.XXXXXX")
trap 'rm -f "$new"' EXIT
while IFS= read -r line || [ -n "$line" ]; do
  case $line in
    *_PASSWORD= | *_SECRET= | *_PASSWORD=change-me-* | *_SECRET=change-me-*)
      secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
      line=${line%%=*}=$secret
      echo "made: ${line%%=*}"
      ;;
  esac
  printf '%s\n' "$line" >> "$new"
done < "$target"
# A secret that a later version asks for, and an older file does not name.
while IFS= read -r line; do
  case $line in
    *_PASSWORD= | *_SECRET=)
      if ! grep -q "^${line%%=*}=" "$new"; then
        printf '%s%s\n' "$line" "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >> "$new"
        echo "made: ${line%%=*}"
      fi
      ;;
  esac
done < "$folder/.env.example"
mv "$new" "$target"
trap - EXIT
echo "secrets are in $target"
