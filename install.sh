#!/bin/sh
# Installs, upgrades or removes s5jtd on this machine, from an unpacked bundle, as root, without network.
#
#   ./install.sh                install, or upgrade what is there; run again, it changes nothing
#   ./install.sh --check        only compare the bundle with its SHA256SUMS
#   ./install.sh --uninstall    remove the program; configuration, ledger, reports and volumes stay
#
#   PYTHON=/path/to/python3.12 ./install.sh     build the environment from this Python (3.11 or newer)
#
# What goes where: docs/INSTALL.md.  A power cut at any moment leaves the former version in place or the
# new one; run this again.
set -eu
umask 022

PREFIX=/opt/s5jtd
RELEASES=$PREFIX/releases
CURRENT=$PREFIX/current
LISTED=$PREFIX/installed-files
LOCAL=/usr/local
ETC=/etc/s5jtd

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

main() {
    here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
    case "${1-}" in
        --help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0" ;;
        --check) check_sums && say "the bundle is as it was made" ;;
        --uninstall) need_root && uninstall ;;
        '') need_root && install_all ;;
        *) printf 'install.sh: unknown option %s; see ./install.sh --help\n' "$1" >&2; exit 2 ;;
    esac
}

need_root() { [ "$(id -u)" = 0 ] || fail "this needs root" "sudo $0 $*"; }

has_systemd() { [ -d /run/systemd/system ]; }

# --- the bundle ---------------------------------------------------------------------------------------

check_sums() {
    [ -f "$here/SHA256SUMS" ] || fail "there is no SHA256SUMS in $here" \
        "in the source tree: make bundle, then unpack dist/s5jtd-*.tar.gz and run the install.sh in it"
    # A file that is not listed could be a wheel that nobody checked.
    (cd "$here" && find . -type f ! -name SHA256SUMS | sed 's|^\./||' | sort) > "$work/there"
    sed 's/^[0-9a-f]*  //' "$here/SHA256SUMS" | sort > "$work/listed"
    extra=$(comm -23 "$work/there" "$work/listed" | head -3 | tr '\n' ' ')
    [ -z "$extra" ] || fail "not in SHA256SUMS: $extra" "unpack the bundle into an empty folder"
    (cd "$here" && sha256sum --check --strict --quiet SHA256SUMS) > "$work/sums" 2>&1 ||
        fail "the bundle is damaged: $(head -3 "$work/sums" | tr '\n' ' ')" "copy it here again, and unpack it anew"
}

choose_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        python=$(command -v "$candidate" 2>/dev/null) || continue
        found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        for one in $PYTHONS; do
            [ "$one" != "$found" ] || break 2
        done
        python=
    done
    [ -n "${python:-}" ] || fail "no Python that this bundle has packages for ($PYTHONS)" \
        "install one of them (apt install python3), or name it: PYTHON=/path/to/python3.12 ./install.sh"
    "$python" -c 'import ctypes, sqlite3, ssl, venv' 2>"$work/python" ||
        fail "$python lacks a part of Python's own library: $(tail -1 "$work/python")" "apt install python3 python3-venv"
}

# --- install and upgrade --------------------------------------------------------------------------------

install_all() {
    check_sums
    . "$here/BUNDLE"
    case "$(uname -m)" in
        x86_64) machine=amd64 ;;
        aarch64) machine=arm64 ;;
        *) machine=$(uname -m) ;;
    esac
    [ "$machine" = "$ARCH" ] || fail "this bundle is for $ARCH, and this machine is $machine" \
        "take s5jtd-$VERSION-linux-$machine.tar.gz"
    choose_python
    release=$RELEASES/$VERSION-$(sha256sum "$here/SHA256SUMS" | cut -c1-12)-py$found
    before=$(readlink "$CURRENT" 2>/dev/null || true)

    if [ -f "$release/complete" ]; then
        say "s5jtd $VERSION is built already in $release"
    else
        build
    fi
    if [ -n "$before" ] && [ "$before" != "$release" ]; then
        prepare_upgrade
    fi
    was_active=
    was_active_api=
    if has_systemd && [ "$before" != "$release" ]; then
        systemctl is-active --quiet s5jtd-api.service && was_active_api=yes
        systemctl is-active --quiet s5jtd.service && was_active=yes
        [ -z "$was_active_api" ] || systemctl stop s5jtd-api.service
        [ -z "$was_active" ] || { say "stopping s5jtd"; systemctl stop s5jtd.service; }
    fi
    switch
    install_files
    accounts
    configuration
    if has_systemd; then
        systemctl daemon-reload
        [ -z "$was_active" ] || start_again s5jtd.service
        [ -z "$was_active_api" ] || start_again s5jtd-api.service
    fi
    forget_old_releases
    last_words
}

build() {
    say "building s5jtd $VERSION in $release, with Python $found"
    rm -rf "$release"
    mkdir -p "$release"
    # pip comes from the bundle: Debian's python3 alone brings none.
    "$python" -m venv --without-pip "$release" 2>"$work/venv" ||
        fail "$python cannot make an environment: $(tail -1 "$work/venv")" "apt install python3-venv"
    set -- "$here"/wheels/pip-*.whl
    PYTHONDONTWRITEBYTECODE=1 "$release/bin/python" -I "$1/pip" --isolated --disable-pip-version-check \
        install --quiet --no-compile --no-index --no-cache-dir --root-user-action=ignore \
        --find-links "$here/wheels" "s5jtd[api,demo]==$VERSION" >"$work/pip" 2>&1 ||
        { cat "$work/pip" >&2; fail "the packages could not be installed" "see above; the former version is untouched"; }
    # The service may not write there, so this is done once for all of its starts; moto, of which the demo
    # needs a small part, has more files than all the rest.
    "$release/bin/python" -I -m compileall -q -j 0 -x '/moto/' "$release/lib" >"$work/compile" 2>&1 || true
    mkdir -p "$release/share/s5jtd"
    for name in systemd etc docs man completions README.md CHANGELOG.md ARCHITECTURE.md LICENSE BUNDLE install.sh; do
        [ ! -e "$here/$name" ] || cp -R "$here/$name" "$release/share/s5jtd/"
    done
    "$release/bin/s5jtd" --version >"$work/version" 2>&1 ||
        { cat "$work/version" >&2; fail "the new program does not run" "the former version is untouched"; }
    sync -f "$release"
    : > "$release/complete"
    sync -f "$release"
}

# The old program is in place and may be running: look whether the new one can take over, and copy the ledger.
prepare_upgrade() {
    config=${S5JTD_CONFIG:-$ETC/config.yaml}
    [ -f "$config" ] || return 0
    state=$("$release/bin/python" -I -c '
import sys
from pathlib import Path
from s5jtd.config import load
from s5jtd.errors import S5jtError
try:
    print(load(Path(sys.argv[1])).state_dir)
except S5jtError as error:
    sys.exit(str(error))
' "$config" 2>"$work/config") ||
        { cat "$work/config" >&2
          fail "the new version cannot use $config" "correct the file and run this again; nothing was changed"; }
    [ -f "$state/ledger.db" ] || return 0
    folder=$state/before-upgrades
    [ -d "$folder" ] || install -d -m 0700 -o "$(stat -c %u "$state")" -g "$(stat -c %g "$state")" "$folder"
    copy=$folder/ledger-$(date -u +%Y%m%dT%H%M%SZ).db
    "$CURRENT/bin/s5jtd" --config "$config" ledger backup "$copy" >"$work/backup" 2>&1 ||
        { cat "$work/backup" >&2
          fail "the ledger could not be copied, so nothing was changed" "see: s5jtd ledger verify"; }
    say "the ledger before the upgrade: $copy"
    find "$folder" -name 'ledger-*.db' | sort -r | tail -n +4 | while read -r old; do rm -f "$old"; done
}

switch() {
    [ "$before" != "$release" ] || return 0
    ln -sfn "$release" "$CURRENT.new"
    mv -T "$CURRENT.new" "$CURRENT"
    sync -f "$PREFIX"
}

# Puts one file outside of $PREFIX, and remembers it for the removal.
place() {
    mode=$1 from=$2 to=$3
    say "$to" >> "$work/installed"
    if [ -L "$from" ] || [ "$mode" = link ]; then
        [ "$(readlink "$to" 2>/dev/null)" = "$from" ] && return 0
        mkdir -p "$(dirname "$to")"
        ln -sfn "$from" "$to"
    elif ! cmp -s "$from" "$to"; then
        mkdir -p "$(dirname "$to")"
        install -m "$mode" "$from" "$to.s5jtd-new"
        mv -f "$to.s5jtd-new" "$to"
    fi
}

install_files() {
    : > "$work/installed"
    share=$release/share/s5jtd
    for name in s5jtd s5jtctl; do
        [ ! -e "$LOCAL/bin/$name" ] || [ -L "$LOCAL/bin/$name" ] ||
            fail "$LOCAL/bin/$name is there, and not ours" "move it away and run this again"
        place link "$CURRENT/bin/$name" "$LOCAL/bin/$name"
    done
    for unit in s5jtd.service s5jtd-api.service; do
        place 0644 "$share/systemd/$unit" "$LOCAL/lib/systemd/system/$unit"
    done
    place 0644 "$share/systemd/s5jtd.sysusers" "$LOCAL/lib/sysusers.d/s5jtd.conf"
    place 0644 "$share/systemd/s5jtd.tmpfiles" "$LOCAL/lib/tmpfiles.d/s5jtd.conf"
    for page in "$share"/man/*.[1-8]; do
        [ ! -f "$page" ] || place 0644 "$page" "$LOCAL/share/man/man${page##*.}/${page##*/}"
    done
    for one in "$share"/completions/*; do
        [ -f "$one" ] || continue
        name=${one##*/}
        case "$name" in
            *.bash) place 0644 "$one" "$LOCAL/share/bash-completion/completions/${name%.bash}" ;;
            _*) place 0644 "$one" "$LOCAL/share/zsh/site-functions/$name" ;;
            *.zsh) place 0644 "$one" "$LOCAL/share/zsh/site-functions/_${name%.zsh}" ;;
            *.fish) place 0644 "$one" "$LOCAL/share/fish/vendor_completions.d/$name" ;;
        esac
    done
    if [ -f "$LISTED" ]; then  # what the former version had and this one has not
        while read -r old; do
            grep -qxF "$old" "$work/installed" || rm -f "$old"
        done < "$LISTED"
    fi
    install -m 0644 "$work/installed" "$LISTED"
}

accounts() {
    systemd-sysusers "$LOCAL/lib/sysusers.d/s5jtd.conf"
}

configuration() {
    mkdir -p "$ETC"
    if [ ! -e "$ETC/config.yaml" ]; then
        install -m 0640 -o root -g s5jtd "$release/share/s5jtd/etc/config.yaml" "$ETC/config.yaml.new"
        mv "$ETC/config.yaml.new" "$ETC/config.yaml"
        fresh_config=yes
    fi
    systemd-tmpfiles --create "$LOCAL/lib/tmpfiles.d/s5jtd.conf"
}

start_again() {
    say "starting $1"
    systemctl start "$1" && return 0
    printf 'install.sh: %s is installed, but %s did not start\n' "$VERSION" "$1" >&2
    fail "see: journalctl -u $1 -n 50" "the way back to the former version is in docs/INSTALL.md, Going back"
}

# The present release and the one before it stay.
forget_old_releases() {
    for one in "$RELEASES"/*; do
        case "$one" in
            "$release" | "$before") ;;
            *) [ "$before" = "$release" ] || rm -rf "$one" ;;
        esac
    done
}

last_words() {
    if [ -n "$before" ] && [ "$before" != "$release" ]; then
        say "s5jtd is upgraded to $VERSION; configuration and ledger are as they were"
        return 0
    fi
    say "s5jtd $VERSION is installed; \`s5jtd check --install\` looks at it again at any time"
    [ -n "${fresh_config:-}" ] || return 0
    say "
Next:
  1. edit $ETC/config.yaml; secrets go to $ETC/credentials.d
  2. s5jtd volumes dropin --write
  3. s5jtd check
  4. systemctl enable --now s5jtd
  5. s5jtctl status
For a person who is to use s5jtctl: usermod -aG s5jt,s5jt-operators NAME"
}

# --- removal ----------------------------------------------------------------------------------------------

uninstall() {
    if [ ! -e "$PREFIX" ]; then
        say "s5jtd is not installed"
        return 0
    fi
    if has_systemd; then
        for unit in s5jtd-api.service s5jtd.service; do
            systemctl disable --now "$unit" >/dev/null 2>&1 || true
        done
    fi
    if [ -f "$LISTED" ]; then
        while read -r file; do rm -f "$file"; done < "$LISTED"
    fi
    rm -rf "$PREFIX"
    ! has_systemd || { systemctl daemon-reload; systemctl reset-failed s5jtd.service s5jtd-api.service 2>/dev/null || true; }
    say "s5jtd is removed.  What stays, and how to remove it:"
    for left in "$ETC" /var/lib/s5jtd /etc/systemd/system/s5jtd.service.d /etc/systemd/system/s5jtd-api.service.d; do
        [ ! -e "$left" ] || say "  rm -r $left"
    done
    for user in s5jtd s5jtd-api; do
        ! id "$user" >/dev/null 2>&1 || say "  userdel $user"
    done
    for group in s5jt s5jt-operators; do
        ! getent group "$group" >/dev/null || say "  groupdel $group"
    done
    say "and what is staged on the volumes."
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# All of it is read before any of it runs: the removal takes this file away.
main "$@"; exit
