// Starts a run, hands it to the sidecar, and gets its verdict by webhook. Needs CREWSHIP_API_KEY, and WEBHOOK_SECRET
// (whsec_...). Any library of Standard Webhooks can make the check. The reply comes last: a delivery without a reply
// comes again, under the same webhook-id.
import { createHmac } from 'node:crypto'
import { createServer } from 'node:http'

const key = Buffer.from(process.env.WEBHOOK_SECRET.trim().replace('whsec_', ''), 'base64')
const seen = new Set() // to outlive a restart, keep these where the program keeps its data

createServer(async (request, response) => {
  let body = ''
  for await (const part of request) body += part
  const id = request.headers['webhook-id']
  const signed = `${id}.${request.headers['webhook-timestamp']}.${body}`
  const recent = Math.abs(Date.now() / 1000 - request.headers['webhook-timestamp']) < 300
  const signature = 'v1,' + createHmac('sha256', key).update(signed).digest('base64')
  const genuine = request.headers['webhook-signature']?.split(' ').includes(signature)
  if (!recent || !genuine) return response.writeHead(401).end()
  const event = JSON.parse(body)
  if (!seen.has(id)) console.log(event.data.run.id, event.type)
  seen.add(id)
  response.writeHead(204).end()
}).listen(8080, '127.0.0.1')

const post = (url, body, headers) => fetch(url, { method: 'POST', body: JSON.stringify(body), headers })
const created = await post('https://api.crewship.dev/v1/runs',
  { deployment_id: 'dep_abc123xyz', input: { topic: 'AI agents' } },
  { Authorization: `Bearer ${process.env.CREWSHIP_API_KEY}`, 'Content-Type': 'application/json' })
const { run_id } = await created.json()
const added = await post('http://127.0.0.1:9477/v1/watches', { run_id })
if (!added.ok) throw new Error(await added.text())
