#!/bin/sh
# Install a kormed bundle on a machine without a network. Needs sh, openssl 3, the usual file
# commands, and Docker or Podman.
#
#   sh install.sh --key kormed.pub          first time: the key comes by another way than the bundle
#   sh install.sh                           later: the key of the first time is kept
#   sh install.sh --bundle FOLDER           with an installer that is trusted already
#   sh install.sh --rollback                back to the version before
#   sh install.sh --verify                  does this machine answer as the sender's did? A report
#   sh install.sh --doctor                  what this machine lacks
#   sh install.sh --uninstall               everything but /etc/kormed and the reports
#
#   --replace             take a bundle that is older, or of another name, than what is installed
#   --accept-unverified   take a bundle whose gate has not passed
#
# Nothing is loaded or started before the signature and every hash are right. The new version is
# complete on the disk before one rename makes it current; killed earlier, the old one stays. One
# that does not become ready gives way to the old one again.
#
# What this site wants otherwise stands in /etc/kormed/site.env, one NAME=VALUE a line, no quotes:
#   KORMED_PORT=8080         where the service listens, on 127.0.0.1
#   KORMED_SERVE_OPTIONS=    words for `kormed serve`, such as --slots 8
#   KORMED_ENGINE_OPTIONS=   words for docker run, such as --gpus all
#   KORMED_NETWORK=host      none: asked through the engine alone
set -eu
umask 022
LC_ALL=C
export LC_ALL

ROOT=${KORMED_ROOT:-/var/lib/kormed}
ETC=${KORMED_ETC:-/etc/kormed}
UNITS=${KORMED_UNITS:-/etc/systemd/system}
QUADLETS=${KORMED_QUADLETS:-/etc/containers/systemd}
ENGINE=${KORMED_ENGINE:-}
SUPERVISOR=${KORMED_SUPERVISOR:-}
WAIT_S=${KORMED_WAIT_S:-300}
STAGE=$ROOT/incoming

say() { printf 'kormed: %s\n' "$*"; }
die() {
    printf 'kormed: %s\n' "$*" >&2
    exit 1
}
field() { sed -n "s/^$1 //p" "$2"; }
setting() { sed -n "s/^$1=//p" "$2"; }
# The version's own setting, unless the site has another.
current_setting() {
    cat "$ROOT/current/service.env" "$ETC/site.env" 2>/dev/null | sed -n "s/^$1=//p" | tail -n 1
}
names_in() { sed 's/^[0-9a-f]*  //' "$1"; }

choose_engine() {
    [ -n "$ENGINE" ] || for ENGINE in docker podman none; do
        ! command -v "$ENGINE" >/dev/null || break
    done
    command -v "$ENGINE" >/dev/null || die "neither docker nor podman is installed"
    "$ENGINE" version >/dev/null 2>&1 || die "$ENGINE does not answer: systemctl start $ENGINE"
}

# Who starts the service, and again after a power cut: systemd, or the engine where there is none.
choose_supervisor() {
    if [ -n "$SUPERVISOR" ]; then return; fi
    if [ -d /run/systemd/system ]; then SUPERVISOR=systemd; else SUPERVISOR=engine; fi
}

lock() {
    mkdir -p "$ROOT"
    if ! mkdir "$ROOT/lock" 2>/dev/null; then
        other=$(cat "$ROOT/lock/pid" 2>/dev/null) || other=
        # By name too, because after a power cut the number may be somebody else's.
        if [ -n "$other" ] && grep -q install.sh "/proc/$other/cmdline" 2>/dev/null; then
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

require_plain_names() {
    part='[A-Za-z0-9][A-Za-z0-9._-]*'
    ! grep -Evxq "[0-9a-f]{64}  $part(/$part)*" "$1" || die "${1##*/}: malformed"
}

# The bundle must have just the files that were signed, as plain files under plain names.
require_same_files() {
    require_plain_names "$STAGE/SHA256SUMS"
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
    check_sums "$STAGE" SHA256SUMS "not as signed"
    join_parts
    take_from_base
    chmod -R u=rwX,go=rX "$STAGE"
}

check_sums() {
    if (cd "$1" && sha256sum -c "$2" >/dev/null 2>&1); then return; fi
    wrong=$(cd "$1" && sha256sum -c "$2" 2>/dev/null | grep -v ': OK$' | head -n 3) || true
    die "$3: $wrong"
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

# An update brings an adapter alone: model and image are those of the version that it stands on, by
# hard link, so that this one is whole when that one is removed.
take_from_base() {
    base=$(setting KORMED_BASE "$STAGE/service.env")
    if [ -z "$base" ]; then return; fi
    case $base in *[!A-Za-z0-9._-]* | .*) die "service.env: a wrong base" ;; esac
    [ -d "$ROOT/versions/$base" ] || die "this update stands on $base, which is not installed"
    require_plain_names "$STAGE/FROM_BASE"
    names_in "$STAGE/FROM_BASE" | while IFS= read -r file; do
        case $file in */*) mkdir -p "$STAGE/${file%/*}" ;; esac
        ln "$ROOT/versions/$base/$file" "$STAGE/$file" ||
            die "the installed $base has no $file: this update stands on another"
    done
    check_sums "$STAGE" FROM_BASE "the installed $base is not what this update stands on"
    cat "$STAGE/FROM_BASE" >>"$STAGE/INSTALLED"
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
    sed "s|/var/lib/kormed|$ROOT|g; s|/etc/kormed|$ETC|g" "$ROOT/current/units/$1" >"$2/$1.new"
    mv "$2/$1.new" "$2/$1"
}

start_service() {
    case $SUPERVISOR in
    systemd) start_with_systemd ;;
    *) start_with_engine ;;
    esac
}

start_with_systemd() {
    case $ENGINE in
    *podman) rm -f "$UNITS/kormed.service" && put_unit kormed.container "$QUADLETS" ;;
    *) rm -f "$QUADLETS/kormed.container" && put_unit kormed.service "$UNITS" ;;
    esac
    systemctl daemon-reload
    case $ENGINE in *podman) ;; *) systemctl enable kormed.service ;; esac
    systemctl restart kormed.service || say "systemd could not start the service"
}

# As the unit does it. The version's own folder, not `current`: after a power cut the engine starts
# this container again, and must find the model that it was made for.
start_with_engine() {
    stop_container
    # Options are words, hence without quotes.
    # shellcheck disable=SC2046
    "$ENGINE" run --detach --name kormed --restart unless-stopped --pull never \
        --network "$(current_setting KORMED_NETWORK)" --read-only \
        --cap-drop ALL --security-opt no-new-privileges \
        --volume "$ROOT/$(readlink "$ROOT/current"):/bundle:ro,z" \
        --env KORMED_PORT="$(current_setting KORMED_PORT)" \
        $(current_setting KORMED_ENGINE_OPTIONS) \
        "$(current_setting KORMED_IMAGE)" \
        serve --model "/bundle/model/$(current_setting KORMED_MODEL)" \
        --port "$(current_setting KORMED_PORT)" $(current_setting KORMED_ADAPTER) \
        $(current_setting KORMED_SERVE_OPTIONS) >/dev/null || say "$ENGINE could not start the service"
}

stop_container() {
    "$ENGINE" stop --time 30 kormed >/dev/null 2>&1 || true
    "$ENGINE" rm --force kormed >/dev/null 2>&1 || true
}

# Asked inside the container, because a bare machine may have nothing that speaks HTTP.
wait_until_ready() {
    left=$WAIT_S
    until "$ENGINE" exec kormed python -m kormed_edge.bundle_ready >/dev/null 2>&1; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 1
    done
    say "ready at http://127.0.0.1:$(current_setting KORMED_PORT)"
}

# Make a version current and start it; one that does not become ready gives way again.
switch_to() {
    now=$(readlink "$ROOT/current" || true)
    before=$(readlink "$ROOT/previous" || true)
    make_current "$1"
    start_service
    if wait_until_ready; then return; fi
    "$ENGINE" logs --tail 5 kormed >&2 || true
    if [ -z "$now" ] || [ "$now" = "$1" ]; then die "not ready after $WAIT_S s; see above"; fi
    point current "$now"
    if [ -n "$before" ]; then point previous "$before"; else rm -f "$ROOT/previous"; fi
    start_service
    wait_until_ready || die "neither ${1#versions/} nor ${now#versions/} became ready; see above"
    die "${1#versions/} was not ready after $WAIT_S s: back to ${now#versions/}"
}

install_bundle() {
    choose_engine
    choose_supervisor
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
        check_sums "$ROOT/$final" INSTALLED "not as signed"
    else
        copy_and_check
        sync
        mv -T "$STAGE" "$ROOT/$final"
    fi
    load_image "$ROOT/$final"
    keep_key
    switch_to "$final"
    say "$NAME $VERSION is installed"
    [ "$(field verified "$ROOT/current/SIGNED")" = yes ] || say "UNVERIFIED: not for clinical use"
}

rollback() {
    choose_engine
    choose_supervisor
    lock
    old=$(readlink "$ROOT/previous") || die "there is no version before this one"
    [ "$old" != "$(readlink "$ROOT/current")" ] || die "there is no version before this one"
    check_sums "$ROOT/$old" INSTALLED "not as signed"
    load_image "$ROOT/$old"
    switch_to "$old"
    say "back to ${old#versions/}"
}

# `kormed` in the image, beside the service. It may write to $ROOT/site alone.
in_image() { # WHERE ARGUMENT... ; WHERE are words for the engine, of namespaces
    where=$1
    shift
    choose_engine
    [ -e "$ROOT/current/SIGNED" ] || die "nothing is installed"
    mkdir -p "$ROOT/site"
    chown 10001:10001 "$ROOT/site"
    chmod 700 "$ROOT/site"
    tty=
    [ ! -t 1 ] || tty=--tty
    # shellcheck disable=SC2046,SC2086
    "$ENGINE" run --rm $tty --pull never $where --read-only \
        --cap-drop ALL --security-opt no-new-privileges \
        --volume "$ROOT/$(readlink "$ROOT/current"):/bundle:ro,z" \
        --volume "$ETC/bundle.pub:/bundle.pub:ro,z" --volume "$ROOT/site:/site:z" \
        --env KORMED_HOME=/site $(current_setting KORMED_ENGINE_OPTIONS) \
        "$(current_setting KORMED_IMAGE)" "$@" --bundle /bundle
}

verify() { in_image "--network none" verify --acceptance --key /bundle.pub; }

# Where the service runs, doctor must see that the port's owner is the service.
doctor() {
    choose_engine
    where="--network $(current_setting KORMED_NETWORK)"
    if "$ENGINE" exec kormed true 2>/dev/null; then
        where="--network container:kormed --pid container:kormed"
    fi
    in_image "$where" doctor --port "$(current_setting KORMED_PORT)"
}

uninstall() {
    choose_engine
    choose_supervisor
    lock
    if [ "$SUPERVISOR" = systemd ]; then
        systemctl disable --now kormed.service 2>/dev/null || systemctl stop kormed.service || true
    fi
    stop_container
    rm -f "$UNITS/kormed.service" "$QUADLETS/kormed.container"
    if [ "$SUPERVISOR" = systemd ]; then systemctl daemon-reload || true; fi
    for env in "$ROOT"/versions/*/service.env; do
        [ -f "$env" ] || continue
        for name in KORMED_IMAGE KORMED_LOADED; do
            "$ENGINE" rmi "$(setting "$name" "$env")" >/dev/null 2>&1 || true
        done
    done
    rm -rf "$ROOT/current" "$ROOT/previous" "$ROOT/versions"
    say "removed; the key and settings in $ETC and the reports in $ROOT/site stay"
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
    --verify) JOB=verify ;;
    --doctor) JOB=doctor ;;
    --uninstall) JOB=uninstall ;;
    *) die "unknown option $1; see the first lines of $0" ;;
    esac
    shift
done
[ -n "${KORMED_ROOT:-}" ] || [ "$(id -u)" = 0 ] || die "run it as root"
BUNDLE=$(cd -- "$BUNDLE" && pwd -P)
$JOB
