#!/bin/sh
# Pin the stack's images: write their digests into settings file $1, for `docker compose pull`.
set -eu
settings=$1
[ -e "$settings" ] || { echo "pin: there is no $settings: say \`make env\` first" >&2; exit 2; }
umask 077
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT

# Lines such as `image: ${NGINX_IMAGE:-nginx:1.28}`. Images of classifiers are built locally, so no registry has them.
sed -n 's/.*image: *"\{0,1\}${\([A-Z]*_IMAGE\):-\([^}]*\)}.*/\1 \2/p' docker-compose.yml | sort -u >"$pins.names"
[ -s "$pins.names" ] || { echo "pin: docker-compose.yml names no image" >&2; exit 2; }
while read -r name image; do
    set_already=$(sed -n "s/^$name=//p" "$settings" | tail -n 1)
    image=${set_already:-$image}
    image=${image%@*}
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image" 2>"$pins.error") || {
        echo "pin: NOT DONE: no registry answers for $image ($(tail -n 1 "$pins.error")); $settings stays as it is" >&2
        rm -f "$pins.names" "$pins.error"
        exit 1
    }
    echo "$name=$image@$digest" | tee -a "$pins"
done <"$pins.names"
names=$(cut -d ' ' -f 1 "$pins.names" | paste -sd '|' -)
{ grep -Ev "^($names)=" "$settings" || true; cat "$pins"; } >"$settings.tmp"
mv "$settings.tmp" "$settings"
rm -f "$pins.names" "$pins.error"
