/** libvirt's own cap on migrations of guests that run: it counts bytes that never cross the link. */
import { DOCTOR_GUESTS_MAX } from '../../lib/core/limits.ts'
import { isGuestName } from '../../lib/host/domain-xml.ts'
import { type Finding, quoted } from './finding.ts'
import { tried } from './place.ts'

/** What libvirt takes as no cap, in MiB/s: the largest number of bytes that QEMU takes. */
const UNLIMITED = '8796093022207'
/** 100 Gbit/s: whoever sets more means none. */
const CAP_MIB_MIN = 12_500

export async function checkBandwidth(): Promise<Finding[]> {
  const names = ((await tried('virsh', '-q', '-c', 'qemu:///system', 'list', '--name')) ?? '').split('\n')
  const findings: Finding[] = []
  for (const name of names.filter((one) => isGuestName(one)).slice(0, DOCTOR_GUESTS_MAX)) {
    const answer = await tried('virsh', '-q', '-c', 'qemu:///system', 'migrate-getspeed', `--domain=${name}`)
    const speed = Number(/^\s*(\d{1,20})\s*$/.exec(answer ?? '')?.[1] ?? Number.NaN)
    if (!(speed < CAP_MIB_MIN)) continue
    findings.push({
      id: 'bandwidth-cap',
      level: 'warning',
      what: `migrations of ${name} are capped at ${speed} MiB/s by libvirt`,
      why: 'that counts what the guest asks to be written, whether it crosses the link or not; limits.wanMbit caps the link',
      mend: `virsh migrate-setspeed --domain ${quoted(name)} ${UNLIMITED}`,
    })
  }
  return findings
}
