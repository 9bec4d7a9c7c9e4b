#!/bin/sh
# Process 1 of one lab host. Started by host.ts under unshare (network, mount, UTS and process namespaces of its own).
# usage: host.sh HOST BASE LOWER REPO LEARNED
#   BASE   the host's directory in the lab's state: seed/ images/ lab/ log/ in, upper/ work/ root/ used here
#   LEARNED  libvirt's knowledge of QEMU, kept between labs
#   LOWER  what the host's root lies over: / or the root of another Debian release
# The host's root is an overlay, so everything it changes is its own and is gone with BASE; after pivot_root nothing of
# the machine but LOWER (read through the overlay), REPO (read only), LEARNED and BASE can be reached from inside.
# It deliberately starts no swamd: tests start, stop and kill that themselves.
set -eu

if [ "$1" != inside ]; then
  host=$1 base=$2 lower=$3 repo=$4 learned=$5 root=$2/root
  hostname "$host"
  ip link set lo up
  mkdir -p "$base/upper" "$base/work" "$root"
  # An upper directory on an overlay or another odd file system is refused by the kernel: memory will do then.
  overlay() { # LOWER NAME TARGET
    mkdir -p "$base/upper/$2" "$base/work/$2"
    if ! mount -t overlay "lab-$host" -o "lowerdir=$1,upperdir=$base/upper/$2,workdir=$base/work/$2" "$3" 2>"$base/log/overlay.err"; then
      mountpoint -q "$base/work" || { mount -t tmpfs -o mode=700 lab-upper "$base/work"; }
      mkdir -p "$base/work/$2.u" "$base/work/$2.w"
      mount -t overlay "lab-$host" -o "lowerdir=$1,upperdir=$base/work/$2.u,workdir=$base/work/$2.w" "$3"
    fi
  }
  overlay "$lower" root "$root"
  if [ "$lower" = / ]; then
    # An overlay of / does not show file systems mounted below it: those that hold programs and state get their own.
    n=0
    while read -r _ at type _; do
      case $at in /usr | /usr/* | /var | /var/* | /etc | /opt) ;; *) continue ;; esac
      case $type in ext[234] | xfs | btrfs | f2fs | zfs) ;; *) continue ;; esac
      [ -d "$at" ] || continue
      n=$((n + 1))
      overlay "$at" "part$n" "$root$at"
    done </proc/mounts
  fi
  mkdir -p "$root/usr/lib/swam" "$root/var/lib/libvirt/images" "$root/var/lib/libvirt/lab" "$root/var/log/swam-lab"
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  # Devices are copied, without /dev/kvm: guests run in software emulation, the same on every machine, and a KVM that is
  # there but cannot be used makes libvirt probe QEMU again at every step (ten seconds for each guest).
  mount -t tmpfs -o mode=755 dev "$root/dev"
  mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
  for node in /dev/* /dev/net/*; do
    if [ -L "$node" ] || [ "$node" = /dev/kvm ] || [ "$node" = /dev/ptmx ]; then continue; fi
    if [ -c "$node" ] || [ -b "$node" ]; then cp -a "$node" "$root$node"; fi
  done
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
  mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  ln -s /proc/self/fd/0 "$root/dev/stdin"
  ln -s /proc/self/fd/1 "$root/dev/stdout"
  ln -s /proc/self/fd/2 "$root/dev/stderr"
  mount -t tmpfs -o mode=755 run "$root/run"
  mount -t tmpfs -o mode=1777 tmp "$root/tmp"
  mount --bind "$base/images" "$root/var/lib/libvirt/images"
  mount --bind "$base/lab" "$root/var/lib/libvirt/lab"
  mount --bind "$base/log" "$root/var/log/swam-lab"
  mkdir -p "$root/var/cache/libvirt/qemu/capabilities"
  mount --bind "$learned" "$root/var/cache/libvirt/qemu/capabilities"
  mount --bind "$repo" "$root/usr/lib/swam"
  mount -o remount,bind,ro "$root/usr/lib/swam"
  # Root's programs in there may add to it; swamd's own user only reads.
  cache=node_modules/.compile-cache
  if [ -d "$repo/$cache" ]; then mount --bind "$repo/$cache" "$root/usr/lib/swam/$cache"; fi
  mkdir -p "$root/run/swam-lab" "$root/run/swam-lab/old"
  cp "$(dirname "$0")/host.sh" "$root/run/swam-lab/host.sh"
  cp -r "$base/seed" "$root/run/swam-lab/seed"
  cd "$root"
  pivot_root . run/swam-lab/old
  # shellcheck disable=SC2093 # the inner script is the rest of this process
  exec chroot . /bin/sh /run/swam-lab/host.sh inside
fi

cd /
umount -l /run/swam-lab/old
rmdir /run/swam-lab/old

# What the machine's own libvirt had defined is not this host's, nor what its owner's shell starts with.
rm -rf /etc/libvirt/qemu/*.xml /etc/libvirt/qemu/autostart /etc/libvirt/qemu/networks/autostart /etc/libvirt/storage \
  /etc/libvirt/hooks /root/.ssh /root/.bashrc /root/.profile /root/.bash_profile /root/.bash_login /etc/swam /var/lib/swam /usr/bin/swam /usr/sbin/swamd
cp -r /run/swam-lab/seed/. /
mkdir -p /run/sshd /run/libvirt /var/log/libvirt /etc/libvirt/hooks/qemu.d
ldconfig 2>/dev/null || true

chmod 700 /root /root/.ssh
chmod 600 /root/.ssh/* /etc/ssh/lab_host_key
if [ -d /etc/swam ]; then
  getent group swam >/dev/null || groupadd --system swam
  getent passwd swam >/dev/null || useradd --system --gid swam --home-dir /var/lib/swam --shell /bin/sh swam
  usermod --shell /bin/sh --home /var/lib/swam --password '*' swam
  mkdir -p /run/swam
  chown -R root:root /etc/swam
  chmod 644 /etc/swam/swam.toml
  mkdir -p /var/lib/swam
  chown -R swam:swam /var/lib/swam /run/swam
  chmod 755 /run/swam
  chmod 700 /var/lib/swam
  if [ -e /etc/swam/id_ed25519 ]; then
    chown swam:swam /etc/swam/id_ed25519
    chmod 600 /etc/swam/id_ed25519
    chmod 700 /var/lib/swam/.ssh
    chmod 600 /var/lib/swam/.ssh/authorized_keys
  fi
  ln -s /usr/lib/swam/bin/swam /usr/bin/swam
  ln -s /usr/lib/swam/bin/swamd /usr/sbin/swamd
  # What only swamd's own user runs is compiled here once: 70 ms less for each channel that a peer opens.
  for program in swam-peer 'swamd --help'; do /usr/lib/swam/bin/$program </dev/null >/dev/null 2>&1 || true; done
  if [ -f /usr/lib/swam/hooks/50-swam ]; then
    cp /usr/lib/swam/hooks/50-swam /etc/libvirt/hooks/qemu.d/50-swam
    chmod 755 /etc/libvirt/hooks/qemu.d/50-swam
  fi
fi
echo 1 >/proc/sys/net/ipv4/tcp_no_metrics_save # a connection must not learn from the run before

/usr/sbin/sshd -f /etc/ssh/sshd_config -E /var/log/swam-lab/sshd.log
/usr/sbin/libvirtd --listen --pid-file /run/libvirt/libvirtd.pid >/var/log/swam-lab/libvirtd.out 2>&1 &
echo $! >/run/swam-lab/libvirtd
echo up >/var/log/swam-lab/ready

# Process 1 inherits every orphan (QEMU among them) and must reap it at once: a shell that waits does.
while :; do
  sleep 86400 &
  wait $! || true
done
