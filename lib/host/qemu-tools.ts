/**
 * How QEMU's programs are run that read an image for us: what is in the image is a guest's, so they can do no more than read. They die
 * with us (a signal of the kernel's). Of swamd's two capabilities they keep the one that opens images, and not that over the
 * network; as root they have a network of their own, with nothing in it. (A user may make no such network under the unit, which
 * forbids all namespaces: there the explicit node of files is what keeps them from dialing.)
 */
export function readingCommand(argv: readonly string[]): string[] {
  const alone = process.getuid?.() === 0 ? ['unshare', '--net', '--'] : []
  const dropped = ['--inh-caps=-net_admin', '--ambient-caps=-net_admin']
  return [...alone, 'setpriv', '--pdeathsig=KILL', ...dropped, '--', ...argv]
}
