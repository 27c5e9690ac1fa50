#!/bin/sh
# What the boot tests need beside debian-packages.txt: QEMU, firmware for UEFI, servers with shares.
set -eu
missing=
for package in nfs-ganesha nfs-ganesha-vfs ovmf qemu-system-x86 samba; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
        "install ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
