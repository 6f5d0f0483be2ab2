import type { GetStatusResponse } from "../../gen/vaccination/operations/v1/operations_service_pb.js";
import { useValue } from "../hooks.ts";
import { clock, type Key, moment, number, t } from "../i18n.ts";
import { Badge, Heading, Loading, Table } from "../ui/parts.tsx";
import { samples } from "./flow.ts";
import { Plot } from "./plot.tsx";
import { SERVICES } from "./services.ts";

interface Quantity {
  name: Key;
  hint: Key;
  of: (status: GetStatusResponse) => number;
}

const PLOTTED: Quantity[] = [
  { name: "outbox", hint: "outboxHint", of: (status) => Number(status.outboxDepth) },
  { name: "lag", hint: "lagHint", of: (status) => Number(status.consumerPending) },
  { name: "inFlight", hint: "inFlightHint", of: (status) => Number(status.consumerInFlight) },
  { name: "deadLetters", hint: "deadLettersHint", of: (status) => Number(status.deadLetters) },
];

const age = (status: GetStatusResponse) => t("seconds", status.outboxOldestSeconds.toFixed(1));

/** How the events flow, now and in the last minutes. */
export function Flow() {
  const all = useValue(samples);
  const last = all.at(-1);
  if (!last)
    return (
      <>
        <Heading>{t("flow")}</Heading>
        <Loading />
      </>
    );
  const times = all.map((sample) => sample.time);
  return (
    <>
      <div class="between">
        <Heading>{t("flow")}</Heading>
        <p class="as-of number">{t("asOf", clock(last.time * 1000))}</p>
      </div>
      <Table
        caption={t("flow")}
        head={[
          t("service"),
          t("status"),
          ...(["outbox", "outboxAge", "lag", "inFlight", "redelivered", "deadLetters", "parked"] as const).map(
            (key) => <span class="right">{t(key)}</span>,
          ),
        ]}
      >
        {SERVICES.map((service, index) => {
          const status = last.of[service];
          const paused = status?.consumerPausedUntil;
          return (
            <tr key={service} data-service={service}>
              <th scope="row">
                <Swatch line={index + 1} /> {service}
              </th>
              <td>
                {!status ? (
                  <Badge tone="bad">{t("unreachable")}</Badge>
                ) : paused ? (
                  <Badge tone="wait">
                    {t("pausedUntil", moment(paused.seconds, Intl.DateTimeFormat().resolvedOptions().timeZone))}
                  </Badge>
                ) : (
                  <Badge tone="good">{t("running")}</Badge>
                )}
              </td>
              {(status
                ? [
                    number(status.outboxDepth),
                    age(status),
                    number(status.consumerPending),
                    number(status.consumerInFlight),
                    number(status.consumerRedelivered),
                    number(status.deadLetters),
                    number(status.parked),
                  ]
                : Array<string>(7).fill("–")
              ).map((value, column) => (
                <td key={column} class={`number ${column === 5 && status?.deadLetters ? "wrong" : ""}`}>
                  {value}
                </td>
              ))}
            </tr>
          );
        })}
      </Table>
      <p class="soft">{t("flowText")}</p>
      <div class="two plots">
        {PLOTTED.map(({ name, hint, of }) => {
          const lines = SERVICES.map((service) =>
            all.map((sample) => (sample.of[service] ? of(sample.of[service]) : null)),
          );
          const now = SERVICES.map((service, index) => `${service} ${lines[index]?.at(-1) ?? "–"}`).join(", ");
          return (
            <figure key={name} class="panel">
              <figcaption>
                <strong>{t(name)}</strong> <span class="soft">{t(hint)}</span>
              </figcaption>
              <Plot times={times} lines={lines} label={t("plotLabel", t(name), now)} />
            </figure>
          );
        })}
      </div>
      <ul class="legend">
        {SERVICES.map((service, index) => (
          <li key={service}>
            <Swatch line={index + 1} /> {service}
          </li>
        ))}
      </ul>
    </>
  );
}

function Swatch({ line }: { line: number }) {
  return (
    <svg class={`swatch line-${line}`} viewBox="0 0 28 10" aria-hidden="true">
      <path d="M0 5h28" />
    </svg>
  );
}
