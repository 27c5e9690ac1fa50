# Runs on the rescue medium: real LVM, LUKS, and RAID are filled, captured, wiped, and restored.
#
#   1: LVM > ext4 (in two pieces), swap      2: LUKS > LVM > ext4, ext4
#   3: RAID1 (with a disk of its own) > ext4     4: LVM > LUKS > ext4
set -eu
here=$(dirname "$0")
disk=/dev/disk/by-id/virtio-SOURCE
twin=/dev/disk/by-id/virtio-TWIN
trap 'echo "NESTED ''failed at: $step"' EXIT
step=start
say() { step=$*; echo "## $step ($(cut -d. -f1 /proc/uptime) s)"; }
quietly() { "$@" > /run/said 2>&1 || { cat /run/said; exit 1; }; }
printf 'correct horse' > /run/key

make_layers() {
    quietly sgdisk -n1:17M:+64M -n2:0:+72M -n3:0:+40M -n4:0:+48M "$disk"
    udevadm settle
    quietly mdadm --create /dev/md0 --run --assume-clean --metadata=1.2 --level=1 --bitmap=internal \
        --raid-devices=2 "$disk-part3" "$twin"
    quick="--batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /run/key"
    quietly pvcreate "$disk-part1" "$disk-part4"
    quietly vgcreate -s 1m plain "$disk-part1"
    quietly vgcreate -s 1m outer "$disk-part4"
    quietly lvcreate -y -l 16 -n root plain
    quietly lvcreate -y -l 12 -n swap plain
    quietly lvextend -l +20 plain/root
    quietly lvcreate -y -l 40 -n vault outer
    quietly cryptsetup luksFormat --type luks2 --sector-size 4096 $quick "$disk-part2"
    quietly cryptsetup luksFormat --type luks1 $quick /dev/outer/vault
    open_luks
    quietly pvcreate /dev/mapper/layer
    quietly vgcreate -s 1m crypt /dev/mapper/layer
    quietly lvcreate -y -l 28 -n root crypt
    quietly lvcreate -y -l 16 -n home crypt
    mkswap -q /dev/plain/swap
    for place in $places; do quietly mkfs.ext4 -q -m 0 "$(device "$place")"; done
}

places="plain crypt home raid vault"
device() {
    case $1 in
    plain) echo /dev/plain/root ;;
    crypt) echo /dev/crypt/root ;;
    home) echo /dev/crypt/home ;;
    raid) echo /dev/md0 ;;
    vault) echo /dev/mapper/vault ;;
    esac
}
open_luks() {
    cryptsetup open --key-file /run/key "$disk-part2" layer
    cryptsetup open --key-file /run/key /dev/outer/vault vault
}
open_all() {
    udevadm settle
    quietly mdadm --assemble --run /dev/md0 "$disk-part3"
    quietly vgchange -ay plain outer
    open_luks
    quietly vgchange -ay crypt
}
close_all() {
    quietly vgchange -an crypt
    cryptsetup close layer
    cryptsetup close vault
    quietly vgchange -an plain outer
    quietly mdadm --stop /dev/md0
}
mount_all() { for place in $places; do mkdir -p "/run/at/$place"; mount "$(device "$place")" "/run/at/$place"; done; }
umount_all() { for place in $places; do umount "/run/at/$place"; done; }
fill() {
    for place in $places; do
        cp -r /usr/lib/python3/dist-packages/imager /usr/lib/python3.13/json /usr/lib/python3.13/email "/run/at/$place" 2> /dev/null || true
        cp -r /usr/lib/python3.13/asyncio "/run/at/$place/deleted"
        dd if=/dev/urandom of="/run/at/$place/noise" bs=64k count=20 status=none
        sync
        rm -r "/run/at/$place/deleted"
        (cd "/run/at/$place" && find . -type f | sort | xargs -d '\n' sha256sum) > "/run/$place.sums"
        test "$(wc -l < "/run/$place.sums")" -gt 20
    done
}
check_all() {
    for place in $places; do e2fsck -f -n "$(device "$place")" > /run/said 2>&1 || { cat /run/said; exit 1; }; done
    mount_all
    for place in $places; do (cd "/run/at/$place" && sha256sum --quiet -c "/run/$place.sums"); done
    swaplabel /dev/plain/swap > /dev/null
}
wipe() { tr '\0' '\245' < /dev/zero | dd of="$disk" bs=1M iflag=fullblock conv=fsync status=none 2> /dev/null || true; }
bring_back() {
    say "wiping for $1"
    wipe
    say "restoring $1"
    quietly imager restore --quiet --yes "$here/$1.img" "$disk"
    partx -u "$disk" || true # they are the same as before
    say "checking $1"
    open_all
    check_all
}
# Each volume in use, and the five file systems of one label-less kind, whatever they lie in.
facts() {
    python3 - "$here/$1.img" << 'END'
import json, subprocess, sys
said = subprocess.run(["imager", "info", "--json", sys.argv[1]], capture_output=True, check=True).stdout
layout = json.loads(said)["head"]["layout"]
def walk(volume, way):
    way = (*way, volume["kind"])
    if not volume["children"]:
        print("/".join(map(str, way)), volume["stored"], volume["used"] * 100 // volume["size"], volume["reason"])
    for child in volume["children"]:
        walk(child, way)
for volume in layout["volumes"]:
    walk(volume, ())
END
}

say "making the layers"
make_layers
mount_all
say "filling"
fill
umount_all
say "capturing what is open"
quietly imager capture "$disk" "$here/open.img"
facts open
imager devices | grep -A 14 "$(basename "$(readlink -f "$disk")")"
quietly imager capture /dev/md0 "$here/md.img"
facts md
close_all
say "capturing what is closed, by its passphrases"
quietly imager capture --unlock 2 --unlock 4 --key-file /run/key "$disk" "$here/unlocked.img"
facts unlocked
bring_back unlocked
say "capturing what is mounted"
(while :; do date >> /run/at/crypt/log; date >> /run/at/raid/log; sync; sleep 0.2; done) & writer=$!
# Emulation stretches what takes milliseconds.
quietly imager capture --target-pause 20s --max-pause 60s "$disk" "$here/live.img"
kill "$writer"
cat /run/said | tail -5
facts live
umount_all
close_all
bring_back live
umount_all
close_all
bring_back open
umount_all
close_all
trap - EXIT
echo "NESTED is" "well"
