#!/bin/busybox sh
# In the initramfs: the host's root, read-only, under an overlay in memory.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in $($b cat /modules/list); do
	$b insmod "/$module" || echo "insmod $module failed"
done
options=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o $options,ro,cache=loose root /host || $b poweroff -f
$b mount -t tmpfs tmpfs /tmpfs
$b mkdir /tmpfs/upper /tmpfs/work
$b mount -t overlay -o lowerdir=/host,upperdir=/tmpfs/upper,workdir=/tmpfs/work overlay /root ||
	$b poweroff -f
for folder in proc sys dev; do
	$b mkdir -p /root/$folder
	$b mount --move /$folder /root/$folder
done
$b mount -t tmpfs -o mode=755 run /root/run
$b mkdir -p /root/run/vm /root/run/lock /root/run/netns
$b mount -t 9p -o $options,cache=none run /root/run/vm
$b cp /stage2 /bin/busybox /root/run/
exec $b switch_root /root /run/stage2
