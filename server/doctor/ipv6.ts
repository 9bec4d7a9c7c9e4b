/** IPv6: a peer that may be reached by it needs [::1] here, where its connections are caught. */
import { createServer, isIPv6 } from 'node:net'
import type { Finding } from './finding.ts'
import type { Place } from './place.ts'

export async function checkIpv6(place: Place): Promise<Finding[]> {
  const peers =
    place.config?.peers.filter(({ addresses }) => addresses.some((address) => isIPv6(address))) ?? []
  if (peers.length === 0 || place.config?.redirect !== 'nft' || (await canListen('::1'))) return []
  return [
    {
      id: 'ipv6-loopback',
      level: 'error',
      what: `[::1] cannot be listened on, and ${peers.map(({ name }) => name).join(', ')} has an IPv6 address`,
      why: 'connections over IPv6 are caught at [::1]: with a name that has an IPv6 address a migration goes direct',
      mend: 'sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0',
    },
  ]
}

async function canListen(host: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const server = createServer()
    server.on('error', () => resolve(false))
    server.listen({ host, port: 0 }, () => server.close(() => resolve(true)))
  })
}
