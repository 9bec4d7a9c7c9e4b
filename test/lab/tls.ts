/**
 * Certificates for `virsh migrate --tls`, as an administrator would lay them out for QEMU: one authority, and for each
 * host a certificate that names it and serves both ends. Made anew for each lab with openssl.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import type { Lab } from './lab.ts'
import { run } from './run.ts'

const DIRECTORY = '/etc/pki/qemu'
const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']

export async function layOutCertificates(lab: Lab): Promise<void> {
  const dir = `${lab.dir}/tls`
  mkdirSync(dir, { mode: 0o700 })
  const openssl = async (...args: string[]): Promise<void> => {
    await run('openssl', args, { cwd: dir })
  }
  await openssl(
    'req',
    '-x509',
    ...KEY,
    '-subj',
    '/CN=lab',
    '-days',
    '2',
    '-keyout',
    'ca.key',
    '-out',
    'ca.pem',
  )
  for (const host of lab.hosts()) {
    const { name } = host
    writeFileSync(
      `${dir}/${name}.ext`,
      `subjectAltName=DNS:${name}\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n`,
    )
    await openssl(
      'req',
      '-new',
      ...KEY,
      '-subj',
      `/CN=${name}`,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.csr`,
    )
    const sign = [
      '-CA',
      'ca.pem',
      '-CAkey',
      'ca.key',
      '-CAcreateserial',
      '-days',
      '2',
      '-extfile',
      `${name}.ext`,
    ]
    await openssl('x509', '-req', '-in', `${name}.csr`, ...sign, '-out', `${name}.pem`)
    const put = async (file: string, from: string): Promise<void> => {
      await host.exec('tee', [`${DIRECTORY}/${file}`], { input: readFileSync(`${dir}/${from}`, 'utf8') })
    }
    await host.shell(`mkdir -p ${DIRECTORY}`)
    await put('ca-cert.pem', 'ca.pem')
    for (const end of ['server', 'client']) {
      await put(`${end}-cert.pem`, `${name}.pem`)
      await put(`${end}-key.pem`, `${name}.key`)
    }
    await host.shell(`chgrp libvirt-qemu ${DIRECTORY}/*.pem; chmod 640 ${DIRECTORY}/*.pem`)
  }
}
