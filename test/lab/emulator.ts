/**
 * QEMU as the lab's guests run it: software emulation, with qemu-dirty.c loaded, which mends what QEMU before 9.0 loses of
 * a guest's memory while it migrates. It lies in each host's lab folder; libvirt hands it over with the guest's definition.
 */
import { copyFileSync } from 'node:fs'
import { run } from './run.ts'

const NAME = 'qemu-dirty.so'

/** The first tag of a guest's definition. */
export const DOMAIN = "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"

/** The last element of a guest's definition. */
export const MENDED: string = `<qemu:commandline><qemu:env name='LD_PRELOAD' value='/var/lib/libvirt/lab/${NAME}'/></qemu:commandline>`

/** @param labDirs of the hosts, on the machine (`LabHost.labDir`) */
export async function layOut(labDirs: readonly string[]): Promise<void> {
  const [first, ...others] = labDirs.map((dir) => `${dir}/${NAME}`)
  if (first === undefined) return
  const source = `${import.meta.dirname}/qemu-dirty.c`
  await run('cc', ['-O2', '-Wall', '-Wextra', '-shared', '-fPIC', '-o', first, source])
  for (const other of others) copyFileSync(first, other)
}
