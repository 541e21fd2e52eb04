#!/bin/sh
# Install a kormed bundle on a machine without a network. Needs sh, openssl 3, the usual file
# commands, and Docker or Podman.
#
#   sh install.sh --key kormed.pub          first time: the key comes by another way than the bundle
#   sh install.sh                           later: the key of the first time is kept
#   sh install.sh --bundle FOLDER           with an installer that is trusted already
#   sh install.sh --rollback                back to the version before
#   sh install.sh --uninstall               everything but /etc/kormed
#
#   --replace             take a bundle that is older, or of another name, than what is installed
#   --accept-unverified   take a bundle whose gate has not passed
#
# Nothing is loaded or started before the signature and every hash are right. The new version is
# complete on the disk before one rename makes it current; killed earlier, the old one stays.
set -eu
umask 022
LC_ALL=C
export LC_ALL

ROOT=${KORMED_ROOT:-/var/lib/kormed}
ETC=${KORMED_ETC:-/etc/kormed}
UNITS=${KORMED_UNITS:-/etc/systemd/system}
QUADLETS=${KORMED_QUADLETS:-/etc/containers/systemd}
ENGINE=${KORMED_ENGINE:-}
STAGE=$ROOT/incoming

say() { printf 'kormed: %s\n' "$*"; }
die() {
    printf 'kormed: %s\n' "$*" >&2
    exit 1
}
field() { sed -n "s/^$1 //p" "$2"; }
setting() { sed -n "s/^$1=//p" "$2"; }
names_in() { sed 's/^[0-9a-f]*  //' "$1"; }

choose_engine() {
    [ -n "$ENGINE" ] || for ENGINE in docker podman none; do
        ! command -v "$ENGINE" >/dev/null || break
    done
    command -v "$ENGINE" >/dev/null || die "neither docker nor podman is installed"
}

lock() {
    mkdir -p "$ROOT"
    if ! mkdir "$ROOT/lock" 2>/dev/null; then
        other=$(cat "$ROOT/lock/pid" 2>/dev/null) || other=
        if [ -n "$other" ] && kill -0 "$other" 2>/dev/null; then
            die "another installation is running, process $other"
        fi
        say "an installation before this one was stopped; starting anew"
    fi
    echo $$ >"$ROOT/lock/pid"
    trap 'rm -rf "$STAGE" "$ROOT/lock"' EXIT
    trap 'exit 1' HUP INT TERM
}

# The signature first; from here on SIGNED can be believed.
read_signed() {
    case $(openssl version) in
    'OpenSSL '[3-9]*) ;;
    *) die "OpenSSL 3 or newer is needed to check the signature; this is $(openssl version)" ;;
    esac
    [ -f "$KEY" ] || die "no public key: give the sender's with --key FILE"
    for file in SIGNED SIGNED.sig SHA256SUMS; do
        if [ -L "$BUNDLE/$file" ] || [ ! -f "$BUNDLE/$file" ]; then
            die "$BUNDLE/$file is missing: not a bundle, or not signed"
        fi
        cp "$BUNDLE/$file" "$STAGE/$file"
    done
    openssl pkeyutl -verify -pubin -inkey "$KEY" -rawin -in "$STAGE/SIGNED" \
        -sigfile "$STAGE/SIGNED.sig" >/dev/null 2>&1 ||
        die "the signature is not by the key $KEY: do not use this bundle"
    [ "$(sed -n 1p "$STAGE/SIGNED")" = "kormed-bundle 1" ] || die "SIGNED: of another kind"
    NAME=$(field name "$STAGE/SIGNED")
    VERSION=$(field version "$STAGE/SIGNED")
    case $NAME in '' | *[!A-Za-z0-9_-]*) die "SIGNED: a wrong name" ;; esac
    case $VERSION in '' | *[!0-9.]* | .* | *. | *..*) die "SIGNED: a wrong version" ;; esac
    [ "$(sha256sum <"$STAGE/SHA256SUMS")" = "$(field sums "$STAGE/SIGNED")  -" ] ||
        die "SHA256SUMS is not the file that was signed"
}

require_acceptable() {
    if [ "$(field verified "$STAGE/SIGNED")" != yes ] && [ -z "$ACCEPT_UNVERIFIED" ]; then
        die "this bundle is UNVERIFIED: its gate has not passed (--accept-unverified takes it)"
    fi
    if [ ! -e "$ROOT/current/SIGNED" ] || [ -n "$REPLACE" ]; then return; fi
    name=$(field name "$ROOT/current/SIGNED")
    version=$(field version "$ROOT/current/SIGNED")
    [ "$NAME" = "$name" ] || die "$name is installed, this is $NAME (--replace takes it)"
    ! older "$VERSION" "$version" ||
        die "version $version is installed, this is the older $VERSION (--replace takes it)"
}

older() {
    a=$1. b=$2.
    while [ -n "$a$b" ]; do
        x=${a%%.*} y=${b%%.*}
        a=${a#*.} b=${b#*.}
        if [ "${x:-0}" -ne "${y:-0}" ]; then
            [ "${x:-0}" -lt "${y:-0}" ]
            return
        fi
    done
    return 1
}

# The bundle must have just the files that were signed, as plain files under plain names.
require_same_files() {
    part='[A-Za-z0-9][A-Za-z0-9._-]*'
    ! grep -Evxq "[0-9a-f]{64}  $part(/$part)*" "$STAGE/SHA256SUMS" || die "SHA256SUMS: malformed"
    odd=$(find "$BUNDLE" ! -type f ! -type d | head -n 1)
    [ -z "$odd" ] || die "$odd is no plain file"
    { names_in "$STAGE/SHA256SUMS" && printf '%s\n' SHA256SUMS SIGNED SIGNED.sig; } |
        sort >"$STAGE/listed"
    (cd "$BUNDLE" && find . -type f) | sed 's|^\./||' | sort >"$STAGE/found"
    differing=$(sort "$STAGE/listed" "$STAGE/found" | uniq -u | head -n 1)
    [ -z "$differing" ] || die "$BUNDLE/$differing is missing, or not part of the bundle"
    rm "$STAGE/listed" "$STAGE/found"
}

# Checked after it was copied: what was hashed is what is used, whatever the stick does later.
copy_and_check() {
    say "copying $NAME $VERSION"
    names_in "$STAGE/SHA256SUMS" | while IFS= read -r file; do
        case $file in */*) [ -d "$STAGE/${file%/*}" ] || mkdir -p "$STAGE/${file%/*}" ;; esac
        cp "$BUNDLE/$file" "$STAGE/$file"
    done
    check_sums "$STAGE" SHA256SUMS
    join_parts
    chmod -R u=rwX,go=rX "$STAGE"
}

check_sums() {
    if (cd "$1" && sha256sum -c "$2" >/dev/null 2>&1); then return; fi
    wrong=$(cd "$1" && sha256sum -c "$2" 2>/dev/null | grep -v ': OK$' | head -n 3) || true
    die "not as signed: $wrong"
}

# INSTALLED is SHA256SUMS as it reads once the parts are joined; --rollback checks with it.
join_parts() {
    cp "$STAGE/SHA256SUMS" "$STAGE/INSTALLED"
    for first in "$STAGE"/*/*.part-000; do
        [ -f "$first" ] || continue
        whole=${first%.part-000}
        folder=$(basename "$(dirname "$whole")")
        cat "$whole".part-* >"$whole"
        (cd "$STAGE/$folder" && sha256sum -c "$whole.sha256" >/dev/null 2>&1) ||
            die "$folder/$(basename "$whole"): its parts do not join"
        rm "$whole".part-*
        { grep -v "  $folder/$(basename "$whole")\.part-" "$STAGE/INSTALLED" &&
            sed "s|  |  $folder/|" "$whole.sha256"; } >"$STAGE/joined"
        mv "$STAGE/joined" "$STAGE/INSTALLED"
    done
}

load_image() {
    say "loading the image with $ENGINE"
    "$ENGINE" load -i "$1/image/kormed-edge.tar" >/dev/null || die "$ENGINE cannot load the image"
    "$ENGINE" tag "$(setting KORMED_LOADED "$1/service.env")" \
        "$(setting KORMED_IMAGE "$1/service.env")" || die "$ENGINE cannot name the image"
}

keep_key() {
    mkdir -p "$ETC"
    if [ "$KEY" != "$ETC/bundle.pub" ]; then
        cp "$KEY" "$ETC/bundle.pub.new"
        mv "$ETC/bundle.pub.new" "$ETC/bundle.pub"
    fi
}

point() { # link NAME to versions/TARGET in one step
    rm -f "$ROOT/$1.new"
    ln -s "$2" "$ROOT/$1.new"
    mv -T "$ROOT/$1.new" "$ROOT/$1"
}

make_current() {
    now=$(readlink "$ROOT/current" || true)
    if [ "$now" != "$1" ]; then
        if [ -n "$now" ]; then point previous "$now"; fi
        point current "$1"
    fi
}

put_unit() {
    mkdir -p "$2"
    sed "s|/var/lib/kormed|$ROOT|g" "$ROOT/current/units/$1" >"$2/$1.new"
    mv "$2/$1.new" "$2/$1"
}

start_service() {
    case $ENGINE in
    *podman) rm -f "$UNITS/kormed.service" && put_unit kormed.container "$QUADLETS" ;;
    *) rm -f "$QUADLETS/kormed.container" && put_unit kormed.service "$UNITS" ;;
    esac
    if ! command -v systemctl >/dev/null; then
        say "no systemd here: start the service as $UNITS/kormed.service does"
        return
    fi
    systemctl daemon-reload
    case $ENGINE in *podman) ;; *) systemctl enable kormed.service ;; esac
    systemctl restart kormed.service || die "the service did not start; --rollback brings the old one"
}

install_bundle() {
    choose_engine
    lock
    rm -rf "$STAGE"
    mkdir -p "$STAGE" "$ROOT/versions"
    read_signed
    require_acceptable
    require_same_files
    final=versions/$NAME-$VERSION
    if [ -d "$ROOT/$final" ]; then
        cmp -s "$STAGE/SHA256SUMS" "$ROOT/$final/SHA256SUMS" ||
            die "$NAME $VERSION is installed with other contents"
        check_sums "$ROOT/$final" INSTALLED
    else
        copy_and_check
        sync
        mv -T "$STAGE" "$ROOT/$final"
    fi
    load_image "$ROOT/$final"
    keep_key
    make_current "$final"
    start_service
    say "$NAME $VERSION is installed"
    [ "$(field verified "$ROOT/current/SIGNED")" = yes ] || say "UNVERIFIED: not for clinical use"
}

rollback() {
    choose_engine
    lock
    old=$(readlink "$ROOT/previous") || die "there is no version before this one"
    [ "$old" != "$(readlink "$ROOT/current")" ] || die "there is no version before this one"
    check_sums "$ROOT/$old" INSTALLED
    load_image "$ROOT/$old"
    make_current "$old"
    start_service
    say "back to ${old#versions/}"
}

uninstall() {
    lock
    if command -v systemctl >/dev/null; then
        systemctl disable --now kormed.service 2>/dev/null || systemctl stop kormed.service || true
    fi
    rm -f "$UNITS/kormed.service" "$QUADLETS/kormed.container"
    if command -v systemctl >/dev/null; then systemctl daemon-reload || true; fi
    rm -rf "$ROOT/current" "$ROOT/previous" "$ROOT/versions"
    say "removed; the key and settings in $ETC and the engine's images stay"
}

JOB=install_bundle BUNDLE=$(dirname "$0") KEY=$ETC/bundle.pub REPLACE='' ACCEPT_UNVERIFIED=''
while [ $# -gt 0 ]; do
    case $1 in
    --key | --bundle) [ $# -gt 1 ] || die "$1 needs a value" ;;
    esac
    case $1 in
    --key) KEY=$2 && shift ;;
    --bundle) BUNDLE=$2 && shift ;;
    --replace) REPLACE=yes ;;
    --accept-unverified) ACCEPT_UNVERIFIED=yes ;;
    --rollback) JOB=rollback ;;
    --uninstall) JOB=uninstall ;;
    *) die "unknown option $1; see the first lines of $0" ;;
    esac
    shift
done
[ -n "${KORMED_ROOT:-}" ] || [ "$(id -u)" = 0 ] || die "run it as root"
BUNDLE=$(cd -- "$BUNDLE" && pwd -P)
$JOB
