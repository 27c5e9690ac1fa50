#!/bin/sh
# Runs inside the new system once all packages are in: makes what starts it, and takes out what a
# medium does not need or what differs between two builds. finish.sh VARIANT
set -eu
variant=$1
recipe=/usr/lib/imager-build
boot=/usr/lib/imager-boot
listed() { grep -v '^#' "$recipe/$1"; }

rm /usr/sbin/update-initramfs
dpkg-divert --quiet --local --rename --remove /usr/sbin/update-initramfs
mkdir -p "$boot/efi"
dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' | LC_ALL=C sort > "$boot/manifest"

# Kernel modules: all but some folders, or only those listed and what they need.
release=$(basename /usr/lib/modules/*)
modules=/usr/lib/modules/$release
if [ "$variant" = full ]; then
    for folder in $(listed left-out.list); do rm -rf "${modules:?}/$folder"; done
else
    for module in $(listed initramfs.list) $(listed ci.list); do
        modprobe --show-depends -S "$release" "$module" 2>/dev/null || echo "no module $module" >&2
    done | sed -n 's!^insmod \(/usr\)\{0,1\}\([^ ]*\).*!/usr\2!p' | sort -u > /tmp/kept
    find "$modules" -name '*.ko*' | sort | comm -23 - /tmp/kept | xargs rm -f
    rm /tmp/kept
fi
# Those that find the medium are unpacked now, not at each start of a slow machine.
for module in $(listed initramfs.list); do
    modprobe --show-depends -S "$release" "$module" 2>/dev/null || true
done | sed -n 's!^insmod \([^ ]*\.xz\).*!\1!p' | sort -u | python3 -c '
import lzma, os, sys
for path in sys.stdin.read().split():
    with lzma.open(path) as packed, open(path.removesuffix(".xz"), "xb") as module:
        module.write(packed.read())
    os.remove(path)'
depmod "$release"

# The initramfs finds the medium and does nothing else: no layer on a disk, no network is looked for
# in it, whatever the installed packages would add.
find /usr/share/initramfs-tools/hooks -type f \
    ! -name klibc-utils ! -name kmod ! -name udev -delete
find /usr/share/initramfs-tools/scripts/init-* -type f ! -name udev -delete
mkinitramfs -o "$boot/initrd.img" "$release"
cp "/boot/vmlinuz-$release" "$boot/vmlinuz"

# The way to the kernel. The BIOS image is made from the same GRUB as the signed EFI one.
grub-mkimage -O i386-pc-eltorito -p /boot/grub -o "$boot/bios.img" \
    all_video biosdisk cat configfile echo halt iso9660 linux ls minicmd normal part_gpt part_msdos \
    reboot search search_fs_file search_fs_uuid search_label serial sleep terminal test true
cp /usr/lib/grub/i386-pc/boot_hybrid.img "$boot/"
cp /usr/lib/shim/shimx64.efi.signed "$boot/efi/BOOTX64.EFI"
cp /usr/lib/shim/mmx64.efi.signed "$boot/efi/mmx64.efi"
cp /usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed "$boot/efi/grubx64.efi"

# Licences of everything, also of what is removed from the system but stands on the medium.
mkdir "$boot/licences"
for text in /usr/share/doc/*/copyright; do
    package=${text%/copyright}
    cp -L "$text" "$boot/licences/${package##*/}.txt"
done
cp -L /usr/share/common-licenses/* "$boot/licences/"

find /usr/share/keymaps -name '*.kmap.gz' -path '*/i386/*' | sed 's!.*/!!; s!\.kmap\.gz$!!' | LC_ALL=C sort -u > "$boot/keymaps"

LC_ALL=C dpkg-query -W -f '${Package}\n' 'grub*' 'shim*' 2>/dev/null | while read -r package; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" | grep -q '^installed' && echo "$package"
done | xargs dpkg --purge --force-depends --force-remove-protected > /dev/null

find /usr/share/keymaps -mindepth 1 -maxdepth 1 ! -name i386 ! -name include -exec rm -rf {} +
systemctl enable --quiet systemd-networkd.service systemd-resolved.service
systemctl disable --quiet ssh.service ssh.socket

echo imager > /etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 imager\n::1 localhost ip6-localhost ip6-loopback\n' > /etc/hosts
: > /etc/fstab
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /etc/nvme/hostid /etc/nvme/hostnqn
ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf

rm -rf "$recipe" /boot/* /initrd.img* /vmlinuz* /usr/lib/udev/hwdb.d /usr/sbin/xfs_scrub \
    /usr/share/doc/* /var/lib/initramfs-tools/* /var/log/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache /var/lib/dpkg/*-old \
    /var/lib/systemd/catalog/database /var/lib/systemd/random-seed /var/cache/apt/archives/lock

# Compiled now and never compared with the source: the first screen does not wait for it.
find /usr/lib/python3 /usr/lib/python3.* -name __pycache__ -type d -prune -exec rm -rf {} +
rm -rf /usr/lib/python3.*/ensurepip /usr/lib/python3.*/pydoc_data /usr/lib/python3.*/turtledemo
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.*
