import { useEffect, useState } from "preact/hooks";
import type {
  DeadLetter,
  RedriveAllDeadLettersResponse,
} from "../../gen/vaccination/operations/v1/operations_service_pb.js";
import { NO_LIMIT } from "../api.ts";
import { useAll, useLoaded, useValue } from "../hooks.ts";
import { moment, number, t } from "../i18n.ts";
import { refusal, type Refusal } from "../refusal.ts";
import { go, place } from "../router.ts";
import { AsOf, Button, Dialog, Effects, Empty, Facts, Heading, Input, Problem, Read, Table } from "../ui/parts.tsx";
import { say } from "../ui/toast.tsx";
import { samples } from "./flow.ts";
import { at, operations, SERVICES, type Service } from "./services.ts";

const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone;
const shortName = (event: string) => event.split(".").at(-1) ?? event;

/** The events that a service could not handle. */
export function DeadLetters() {
  const { query } = useValue(place);
  const service = SERVICES.find((one) => one === query.get("service")) ?? "reservation";
  const last = useValue(samples).at(-1);
  const [open, setOpen] = useState<bigint | null>(null);
  const [all, setAll] = useState(false);
  const list = useAll(
    (which, signal) => operations.listDeadLetters({ service, ...which }, at(service, signal)),
    (page) => page.deadLetters,
    [service],
  );
  const closed = () => {
    setOpen(null);
    setAll(false);
    void list.reload();
  };
  return (
    <>
      <Heading>{t("deadLetters")}</Heading>
      <div class="tools-row">
        <div class="chips" role="group" aria-label={t("service")}>
          {SERVICES.map((one) => (
            <button
              key={one}
              type="button"
              class="chip"
              aria-pressed={one === service}
              onClick={() => go(`/operator/dead-letters?service=${one}`, { replace: true })}
            >
              {one} <span class="number">{number(last?.of[one]?.deadLetters ?? 0)}</span>
            </button>
          ))}
        </div>
        <AsOf at={list.at} onRefresh={list.reload} />
      </div>
      <Read from={list}>
        {(letters) =>
          letters.length ? (
            <>
              <div>
                <Button onClick={() => setAll(true)}>{t("redriveAll")}</Button>
              </div>
              <Table
                caption={t("deadLetters")}
                head={[
                  "#",
                  t("event"),
                  t("reservationId"),
                  t("why"),
                  t("when"),
                  <span class="unseen">{t("what")}</span>,
                ]}
              >
                {letters.slice(0, 500).map((letter) => (
                  <Row key={String(letter.sequence)} letter={letter} onOpen={() => setOpen(letter.sequence)} />
                ))}
              </Table>
            </>
          ) : (
            <Empty title={t("noDeadLetters")} />
          )
        }
      </Read>
      {open !== null && <One service={service} sequence={open} onClose={closed} />}
      {all && <RedriveAll service={service} count={list.data?.length ?? 0} onClose={closed} />}
    </>
  );
}

function Row({ letter, onOpen }: { letter: DeadLetter; onOpen: () => void }) {
  const failure = letter.history.at(-1);
  return (
    <tr>
      <td class="number">{number(letter.sequence)}</td>
      <th scope="row">{shortName(letter.event)}</th>
      <td>{letter.reservationId.slice(0, 8)}</td>
      <td class="reason">{failure?.reason}</td>
      <td class="nowrap">{moment(failure?.time?.seconds, ZONE)}</td>
      <td>
        <div class="row-actions">
          <Button class="small" onClick={onOpen}>
            {t("open")}
          </Button>
        </div>
      </td>
    </tr>
  );
}

/** One dead letter, and what can be done about it. */
function One({ service, sequence, onClose }: { service: Service; sequence: bigint; onClose: () => void }) {
  const read = useLoaded(
    (signal) => operations.getDeadLetter({ service, sequence }, at(service, signal)),
    [service, sequence],
  );
  const [discarding, setDiscarding] = useState(false);
  const [reason, setReason] = useState("");
  const [refused, setRefused] = useState<Refusal | null>(null);
  const attempt = async (work: () => Promise<string>) => {
    setRefused(null);
    try {
      say(await work());
      onClose();
    } catch (error) {
      setRefused(refusal(error));
    }
  };
  const redrive = () =>
    attempt(async () => {
      const { handled, failed } = await operations.redriveDeadLetters(
        { service, which: { case: "sequence", value: sequence } },
        at(service),
      );
      return t("redriveProgress", handled, failed, 0);
    });
  const discard = () =>
    attempt(async () => {
      await operations.discardDeadLetter({ service, sequence, reason: reason.trim() }, at(service));
      return t("done");
    });
  return (
    <Dialog title={`${service} #${number(sequence)}`} onClose={onClose} wide>
      <Read from={read}>
        {({ deadLetter: letter }) =>
          letter && (
            <>
              <Facts
                of={[
                  [t("event"), letter.event.replaceAll(".", ".\u200b")], // may be broken after a dot
                  [t("reservationId"), letter.reservationId],
                ]}
              />
              <h3>{t("history")}</h3>
              <ul class="failures">
                {letter.history.map((failure, index) => (
                  <li key={index}>
                    <span class="soft">
                      {moment(failure.time?.seconds, ZONE)} · {t("tries", failure.tries)}
                    </span>
                    <span lang="en">{failure.reason}</span>
                  </li>
                ))}
              </ul>
              <details>
                <summary>{t("payload")}</summary>
                <pre tabIndex={0}>{pretty(letter.payloadJson) || hex(letter.payload)}</pre>
              </details>
              <Effects of={[t(discarding ? "discardEffect" : "redriveOneEffect")]} />
              {discarding && (
                <Input label={t("noteWhy")} maxLength={500} value={reason} onText={setReason} />
              )}
            </>
          )
        }
      </Read>
      {refused && <Problem refused={refused} />}
      <div class="actions">
        {discarding ? (
          <>
            <Button onClick={() => setDiscarding(false)}>{t("back")}</Button>
            <Button kind="danger" disabled={!reason.trim()} onClick={discard}>
              {t("discardIt")}
            </Button>
          </>
        ) : (
          <>
            <Button kind="danger" onClick={() => setDiscarding(true)}>
              {t("discard")}
            </Button>
            <Button kind="main" onClick={redrive}>
              {t("redrive")}
            </Button>
          </>
        )}
      </div>
    </Dialog>
  );
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

const hex = (bytes: Uint8Array) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

/** Redrives them one after the other; leaving stops after the one in hand. */
function RedriveAll({ service, count, onClose }: { service: Service; count: number; onClose: () => void }) {
  const [progress, setProgress] = useState<RedriveAllDeadLettersResponse | null>(null);
  const [refused, setRefused] = useState<Refusal | null>(null);
  const [leaving] = useState(() => new AbortController());
  useEffect(() => () => leaving.abort(), []);
  const redrive = async () => {
    setRefused(null);
    try {
      for await (const now of operations.redriveAllDeadLetters(
        { service },
        { ...at(service, leaving.signal), ...NO_LIMIT },
      ))
        setProgress(now);
    } catch (error) {
      if (!leaving.signal.aborted) setRefused(refusal(error));
    }
  };
  return (
    <Dialog title={t("redriveAllTitle", service, count)} onClose={onClose}>
      <Effects of={[t("redriveAllEffect")]} />
      {progress && (
        <p class="progress" role="status">
          {t("redriveProgress", Number(progress.handled), Number(progress.failed), Number(progress.left))}
        </p>
      )}
      {refused && <Problem refused={refused} />}
      <div class="actions">
        <Button onClick={onClose}>{t("close")}</Button>
        {progress?.left !== 0n && (
          <Button kind="main" onClick={redrive}>
            {t("redriveAll")}
          </Button>
        )}
      </div>
    </Dialog>
  );
}
