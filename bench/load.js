// VUS customers at a time book for SECONDS. Each starts as soon as the one before has an answer, which is a closed model.
// Every iteration is another customer, so that the rule of one active booking per person refuses nobody.
import grpc from 'k6/net/grpc';
import exec from 'k6/execution';
import { SharedArray } from 'k6/data';
import { Counter } from 'k6/metrics';

const METHOD = 'vaccination.reservation.v1.ReservationService/CreateReservation';
const APPROVED = 'RESERVATION_STATUS_APPROVED';
const CODES = ['OK', 'CANCELLED', 'UNKNOWN', 'INVALID_ARGUMENT', 'DEADLINE_EXCEEDED', 'NOT_FOUND', 'ALREADY_EXISTS',
  'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED',
  'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS', 'UNAUTHENTICATED'];

export const options = {
  scenarios: {
    customers: { executor: 'constant-vus', vus: Number(__ENV.VUS), duration: `${__ENV.SECONDS}s`, gracefulStop: '15s' },
  },
  summaryTrendStats: ['avg', 'p(50)', 'p(90)', 'p(99)', 'max'],
};

const tokens = new SharedArray('tokens', () => JSON.parse(open(__ENV.TOKENS)));
const hospitals = __ENV.HOSPITALS.split(',');
const days = __ENV.DAYS.split(',');
const outcomes = Object.fromEntries(
  [...CODES, 'REJECTED'].map((name) => [name, new Counter(`outcome_${name}`)]),
);
const client = new grpc.Client();
client.loadProtoset(__ENV.IMAGE);
let connected = false;

// The program that reads our output waits for this line, because CPU time used before it does not belong to the load.
export function setup() {
  console.log('ready');
}

export default function () {
  if (!connected) {
    client.connect(__ENV.GATEWAY, { plaintext: true });
    connected = true;
  }
  const i = exec.scenario.iterationInTest;
  if (i >= tokens.length && __ENV.REUSE !== '1') {
    exec.test.abort('there are more requests than customers');
  }
  const request = {
    request_id: __ENV.REQUEST_PREFIX + i.toString(16).padStart(12, '0'),
    hospital_id: hospitals[i % hospitals.length],
    date: days[Math.floor(i / hospitals.length) % days.length],
  };
  const metadata = { authorization: `Bearer ${tokens[i % tokens.length]}` };
  const answer = client.invoke(METHOD, request, { metadata, timeout: '15s' });
  const refused = answer.status === grpc.StatusOK && answer.message.reservation.status !== APPROVED;
  outcomes[refused ? 'REJECTED' : CODES[Number(answer.status)]].add(1);
}

export function handleSummary({ metrics, state }) {
  const counts = {};
  for (const [name, metric] of Object.entries(metrics)) {
    if (name.startsWith('outcome_')) counts[name.slice('outcome_'.length)] = metric.values.count;
  }
  const { 'p(50)': p50, 'p(90)': p90, 'p(99)': p99, max } = metrics.grpc_req_duration.values;
  const result = { seconds: state.testRunDurationMs / 1000, outcomes: counts, ms: { p50, p90, p99, max } };
  return { [__ENV.RESULT]: JSON.stringify(result) };
}
