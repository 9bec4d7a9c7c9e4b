#!/bin/bash
# Builds the lab's Debian images: base.raw (a small Debian with kernel), guest.raw (a clone of base.raw that lived on:
# packages, logs, data), kernel, initrd. build.ts runs it inside mount and pid namespaces of its own, so that every
# mount, loop device and left-over process goes when it ends, however it ends.
#   recipe.sh OUT MIRROR RELEASE      environment: APT_CONF (file), CA_BUNDLE (file), both optional
# Deliberately not reproducible to the byte: the images are built once and kept, their digests are in out/demo.json.
set -euo pipefail
out=$1 mirror=$2 release=$3
root=$out/root
image_bytes=$((4 << 30))
here=$(dirname "$(readlink -f "$0")")

base_packages=systemd-sysv,dbus,linux-image-cloud-amd64,initramfs-tools,openssh-server,openssh-client,python3,perl
base_packages+=,ca-certificates,vim-tiny,less,curl,wget,rsync,bash-completion,file,xz-utils,zstd
guest_packages=(nginx redis-server git sqlite3 python3-django)

. "$here/image.sh"

build_base() {
  step "base: file system"
  truncate -s $image_bytes "$out/base.raw"
  # No lazy initialisation: the guest's kernel would write inode tables behind the demo's back.
  mke2fs -q -t ext4 -b 4096 -L root -U 5a3d1c52-7d7f-4c35-9a39-0f4a2a3c5f10 \
    -E hash_seed=0b1f0f1e-55aa-4f0e-8d58-5b1d43f0a1c2,lazy_itable_init=0,lazy_journal_init=0 "$out/base.raw"
  mount_image "$out/base.raw"
  step "base: debootstrap $release"
  debootstrap --merged-usr --include="$base_packages" "$release" "$root" "$mirror" > "$out/debootstrap.log" 2>&1 ||
    { tail -20 "$out/debootstrap.log" "$root/debootstrap/debootstrap.log" >&2; return 1; }
  enter
  step "base: settings"
  printf 'deb %s %s main\n' "$mirror" "$release" > "$root/etc/apt/sources.list"
  echo guest > "$root/etc/hostname"
  printf '127.0.0.1 localhost guest\n' > "$root/etc/hosts"
  printf '/dev/vda / ext4 noatime 0 1\n' > "$root/etc/fstab"
  chroot "$root" passwd -q -d root
  # The guest is emulated in software: a small initrd with the few drivers it needs, and no services that only take time.
  sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=gzip/' "$root/etc/initramfs-tools/initramfs.conf"
  printf '%s\n' virtio virtio_ring virtio_pci virtio_blk ext4 > "$root/etc/initramfs-tools/modules"
  chroot "$root" update-initramfs -u >&2
  for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    man-db.timer dpkg-db-backup.timer logrotate.timer systemd-timesyncd.service networking.service \
    systemd-binfmt.service systemd-pstore.service systemd-update-utmp-runlevel.service \
    systemd-journal-flush.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
    dev-hugepages.mount dev-mqueue.mount keyboard-setup.service console-setup.service \
    serial-getty@ttyS0.service serial-getty@ttyS1.service getty@tty1.service cron.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
  install -m 755 "$here/heartbeat.pl" "$root/usr/local/sbin/swam-heartbeat"
  install -m 755 "$here/ready.pl" "$root/usr/local/sbin/swam-ready"
  install -m 644 "$here/swam-heartbeat.service" "$here/swam-ready.service" "$root/etc/systemd/system/"
  chroot "$root" systemctl -q enable swam-heartbeat.service
  chroot "$root" apt-get clean
  rm -rf "$root"/var/lib/apt/lists/*_* "$root"/var/cache/apt/*.bin
  leave
  cp --dereference "$root/vmlinuz" "$out/vmlinuz"
  cp --dereference "$root/initrd.img" "$out/initrd.img"
  # Drops what debootstrap deleted again; what the guest deletes later stays in its image, as it does in life.
  close_image "$out/base.raw" -E discard
}

build_guest() {
  step "guest: clone of base.raw"
  cp --reflink=auto --sparse=always "$out/base.raw" "$out/guest.raw"
  mount_image "$out/guest.raw"
  enter
  step "guest: ${guest_packages[*]}"
  chroot "$root" apt-get -q update >> "$out/apt.log" 2>&1
  chroot "$root" apt-get -q -y install "${guest_packages[@]}" >> "$out/apt.log" 2>&1 || { tail -20 "$out/apt.log" >&2; return 1; }
  chroot "$root" systemctl -q enable nginx.service redis-server.service swam-ready.service
  step "guest: logs and data"
  # What a machine gathers in its life: a log, a repository with history, and 24 MiB that nothing compresses.
  python3 "$here/life.py" "$root"
  chroot "$root" apt-get clean
  leave
  close_image "$out/guest.raw"
}

build_base
build_guest
rmdir "$root"
step "done"
