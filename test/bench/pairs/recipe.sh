#!/bin/bash
# Builds the images of the bench's pairs, each of 4 GiB with holes: base.raw (a Debian with kernel), web.raw (a clone of base.raw with
# packages and a life), web2.raw (a clone of web.raw, later: security updates, a newer kernel, logs, 20 MB of random data),
# indep.raw (the files of web.raw in a file system of its own, so another layout), db.raw (another clone of base.raw).
# pairs.ts runs it inside mount and pid namespaces of its own, so that every mount, loop device and left-over process goes
# when it ends, however it ends.
#   recipe.sh OUT MIRROR RELEASE SECURITY_MIRROR     environment: APT_CONF (file), CA_BUNDLE (file), both optional
# Deliberately not reproducible to the byte: the images are built once and kept, with their digests beside them.
set -euo pipefail
out=$1 mirror=$2 release=$3 security_mirror=$4
root=$out/root
image_bytes=$((4 << 30))
here=$(dirname "$(readlink -f "$0")")
lab=$here/../../lab/debian
. "$lab/image.sh"

base_packages=(systemd-sysv dbus linux-image-cloud-amd64 initramfs-tools openssh-server openssh-client python3 perl
  ca-certificates vim-tiny less curl wget rsync bash-completion file xz-utils zstd)
web_packages=(nginx redis-server git sqlite3 python3-django)
db_packages=(mariadb-server)

logged() { # COMMAND ...: its output goes to the log, and the end of that to stderr when it fails
  "$@" >> "$out/build.log" 2>&1 || { tail -20 "$out/build.log" >&2; return 1; }
}

install_packages() { # PACKAGE ...
  logged chroot "$root" apt-get -q update
  logged chroot "$root" apt-get -q -y install "$@"
}

make_image() { # DIRECTORY IMAGE LABEL: a fresh file system with the directory's files, without mounting it
  truncate -s $image_bytes "$2"
  mke2fs -q -t ext4 -b 4096 -L "$3" -E lazy_itable_init=0,lazy_journal_init=0 -d "$1" "$2"
  e2fsck -fp "$2" >&2 || [ $? -le 1 ] # 1: it mended something
  fallocate --dig-holes "$2"
}

open_clone() { # IMAGE CLONE: its root is mounted then, and ready for packages
  cp --reflink=auto --sparse=always "$1" "$2"
  mount_image "$2"
  enter
  # Packages lie in memory: deleted again they would stay in the image, and be most of what is new in it.
  mount -t tmpfs tmpfs "$root/var/cache/apt/archives"
}

close_clone() { # CLONE
  umount "$root/var/cache/apt/archives"
  leave
  close_image "$1"
}

build_base() {
  step "base: debootstrap $release"
  mkdir -p "$root"
  logged debootstrap --variant=minbase --merged-usr "$release" "$root" "$mirror"
  enter
  printf 'deb %s %s main\n' "$mirror" "$release" > "$root/etc/apt/sources.list"
  echo guest > "$root/etc/hostname"
  printf '/dev/vda / ext4 noatime 0 1\n' > "$root/etc/fstab"
  step "base: ${base_packages[*]}"
  install_packages "${base_packages[@]}"
  chroot "$root" apt-get clean
  rm -rf "$root"/var/lib/apt/lists/*_*
  leave
  make_image "$root" "$out/base.raw" base
  rm -rf --one-file-system "$root"
  mkdir "$root"
}

build_web() {
  step "web: clone of base, ${web_packages[*]}"
  open_clone "$out/base.raw" "$out/web.raw"
  install_packages "${web_packages[@]}"
  python3 "$lab/life.py" "$root"
  close_clone "$out/web.raw"
}

build_web2() {
  step "web2: web later"
  open_clone "$out/web.raw" "$out/web2.raw"
  printf 'deb %s %s-security main\n' "$security_mirror" "$release" >> "$root/etc/apt/sources.list"
  local kernels
  kernels=$(ls "$root"/boot)
  logged chroot "$root" apt-get -q update
  logged chroot "$root" apt-get -q -y dist-upgrade
  [ "$(ls "$root"/boot)" != "$kernels" ] ||
    { echo "web2: expected a newer kernel from $security_mirror than $kernels, found none" >&2; return 1; }
  python3 "$here/later.py" "$root" 2 20
  close_clone "$out/web2.raw"
}

build_indep() {
  step "indep: the files of web in another file system"
  mount -o loop,ro,noload "$out/web.raw" "$root" # web.raw stays as it is
  make_image "$root" "$out/indep.raw" indep
  umount "$root"
}

build_db() {
  step "db: clone of base, ${db_packages[*]}"
  open_clone "$out/base.raw" "$out/db.raw"
  install_packages "${db_packages[@]}"
  python3 "$here/later.py" "$root" 3 60
  close_clone "$out/db.raw"
}

build_base
build_web
build_web2
build_indep
build_db
rmdir "$root"
step "done"
