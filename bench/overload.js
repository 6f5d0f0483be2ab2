// RATE customers a second book for SECONDS, whether those before have an answer or not, which is an open model: a crowd does
// not wait. Every iteration is another customer. VUS limits the calls in flight. Calls that the limit prevents are counted as
// dropped.
import grpc from 'k6/net/grpc';
import exec from 'k6/execution';
import { SharedArray } from 'k6/data';
import { Counter, Trend } from 'k6/metrics';

const METHOD = 'vaccination.reservation.v1.ReservationService/CreateReservation';
const CODES = ['OK', 'CANCELLED', 'UNKNOWN', 'INVALID_ARGUMENT', 'DEADLINE_EXCEEDED', 'NOT_FOUND', 'ALREADY_EXISTS',
  'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED',
  'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS', 'UNAUTHENTICATED'];

export const options = {
  scenarios: {
    crowd: {
      executor: 'constant-arrival-rate', rate: Number(__ENV.RATE), timeUnit: '1s', duration: `${__ENV.SECONDS}s`,
      preAllocatedVUs: Number(__ENV.VUS), maxVUs: Number(__ENV.VUS), gracefulStop: '15s',
    },
  },
  summaryTrendStats: ['p(50)', 'p(90)', 'p(99)', 'max'],
};

const tokens = new SharedArray('tokens', () => JSON.parse(open(__ENV.TOKENS)));
const hospitals = __ENV.HOSPITALS.split(',');
const days = __ENV.DAYS.split(',');
const outcomes = Object.fromEntries(
  [...CODES, 'REJECTED', 'REFUSED_BUSY', 'REFUSED_OVERLOADED'].map((name) => [name, new Counter(`outcome_${name}`)]),
);
const served = new Trend('served_ms', true);
// From the time at which the call was due, so that what delays the generator counts too; of all calls.
const due = new Trend('due_ms', true);
const refused = new Trend('refused_ms', true);
const retryAfter = new Trend('retry_after');
const client = new grpc.Client();
client.loadProtoset(__ENV.IMAGE);
let connected = false;

// The program that reads our output waits for this line, because CPU time used before it does not belong to the load.
export function setup() {
  console.log('ready');
}

// A proper refusal says who refuses and when to come back. Any other refusal is counted by its code.
function refusal(answer) {
  if (answer.status !== grpc.StatusResourceExhausted) return null;
  const details = answer.error.details || [];
  const retry = details.find((d) => (d['@type'] || '').endsWith('google.rpc.RetryInfo'));
  const info = details.find((d) => (d['@type'] || '').endsWith('google.rpc.ErrorInfo'));
  if (!retry || !info) return null;
  retryAfter.add(parseFloat(retry.retryDelay));
  return info.reason === 'APPROVAL_BUSY' ? 'REFUSED_BUSY' : 'REFUSED_OVERLOADED';
}

export default function () {
  if (!connected) {
    client.connect(__ENV.GATEWAY, { plaintext: true });
    connected = true;
  }
  const i = exec.scenario.iterationInTest;
  if (i >= tokens.length) {
    exec.test.abort('there are more requests than customers');
  }
  const request = {
    request_id: __ENV.REQUEST_PREFIX + i.toString(16).padStart(12, '0'),
    hospital_id: hospitals[i % hospitals.length],
    date: days[Math.floor(i / hospitals.length) % days.length],
  };
  const metadata = { authorization: `Bearer ${tokens[i]}` };
  const begin = Date.now();
  const answer = client.invoke(METHOD, request, { metadata, timeout: '10s' });
  const ms = Date.now() - begin;
  due.add(Date.now() - exec.scenario.startTime - (i * 1000) / Number(__ENV.RATE));
  let outcome = refusal(answer);
  if (outcome) {
    refused.add(ms);
  } else if (answer.status === grpc.StatusOK) {
    served.add(ms);
    outcome = answer.message.reservation.status === 'RESERVATION_STATUS_APPROVED' ? 'OK' : 'REJECTED';
  } else {
    outcome = CODES[Number(answer.status)];
  }
  outcomes[outcome].add(1);
}

export function handleSummary({ metrics, state }) {
  const counts = {};
  for (const [name, metric] of Object.entries(metrics)) {
    if (name.startsWith('outcome_')) counts[name.slice('outcome_'.length)] = metric.values.count;
  }
  const trend = (name) => {
    const values = metrics[name] ? metrics[name].values : {};
    return {
      p50: values['p(50)'] || 0, p90: values['p(90)'] || 0, p99: values['p(99)'] || 0, max: values.max || 0,
    };
  };
  const dropped = metrics.dropped_iterations ? metrics.dropped_iterations.values.count : 0;
  const result = {
    seconds: state.testRunDurationMs / 1000, outcomes: counts, dropped, ms: trend('due_ms'),
    served: trend('served_ms'), refused: trend('refused_ms'), retry: trend('retry_after'),
  };
  return { [__ENV.RESULT]: JSON.stringify(result) };
}
