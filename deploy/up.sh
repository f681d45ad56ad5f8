#!/bin/sh
# Starts everything in compose.yaml with one command, and waits until it is healthy. The first time it makes deploy/.env
# with new secrets. Options go to `docker compose up`.
set -eu
folder=$(CDPATH="" cd -- "$(dirname -- "$0")" && pwd)

docker compose version >/dev/null 2>&1 || { echo "this takes Docker with Compose: https://docs.docker.com/compose/install/" >&2; exit 1; }

# Postgres takes its password when its volume is new: a new one would lock the nodes out.
if [ ! -e "$folder/.env" ] && docker volume inspect switchboard_history >/dev/null 2>&1; then
  echo "deploy/.env is gone, and Postgres' volume has its password: restore the file, or delete the call history and" \
    "Grafana's settings: docker ps -aq --filter label=com.docker.compose.project=switchboard | xargs -r docker rm -f;" \
    "docker volume rm switchboard_history switchboard_grafana" >&2
  exit 1
fi
"$folder/secrets.sh"
docker compose -f "$folder/compose.yaml" up --build --wait "$@"
cat <<END

switchboard is at http://127.0.0.1:3000/. For a token of the user anna:

  docker compose -f "$folder/compose.yaml" exec node1 switchboard token --user anna
END
