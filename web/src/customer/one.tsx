import { useEffect, useState } from "preact/hooks";
import type { MyReservation } from "../../gen/vaccination/mypage/v1/my_reservation_pb.js";
import { ReservationStatus } from "../../gen/vaccination/reservation/v1/reservation_pb.js";
import { dayIn } from "../days.ts";
import { useValue } from "../hooks.ts";
import { eventName, longDay, manufacturerName, moment, nameOf, plainDay, reasonText, t, vaccineName } from "../i18n.ts";
import { refusal, type Refusal } from "../refusal.ts";
import { Button, Dialog, Effects, Facts, Heading, Link, Loading, Problem } from "../ui/parts.tsx";
import { meaning, Status, toneOf } from "./home.tsx";
import { isCurrent, isHeld } from "./merge.ts";
import { asks, cancel, isBooking, lastAnswer, mine, readOne } from "./mine.ts";

/** Everything about one reservation. */
export function One({ id }: { id: string }) {
  const { all } = useValue(mine);
  const pending = useValue(asks.pending);
  const [failed, setFailed] = useState<Refusal | null>(null);
  const [asking, setAsking] = useState(false);
  const one = all?.find((each) => each.reservationId === id);
  const missing = all !== undefined && !one;
  useEffect(() => {
    // The stream begins with the newest ones; an older one is read by itself.
    if (missing) readOne(id).catch((error: unknown) => setFailed(refusal(error)));
  }, [id, missing]);

  const back = (
    <Link href="/customer" class="back">
      {t("myBooking")}
    </Link>
  );
  if (!one)
    return (
      <>
        <Heading before={back}>{t("reservation")}</Heading>
        {failed ? <Problem refused={failed} title={t("unknownReservation")} /> : <Loading />}
      </>
    );
  const held = isHeld(one, dayIn(one.timeZone, Date.now()));
  const busy = isBooking(pending);
  // A cancellation is not kept waiting by requests about other reservations.
  const asked = pending.some((ask) => (ask.request as { reservationId?: string }).reservationId === id);
  return (
    <>
      <Heading before={back}>{t("reservation")}</Heading>
      <article class={`ticket ${toneOf(one.status)}`} data-status={nameOf(ReservationStatus, one.status)}>
        <Status one={one} />
        <h2>{longDay(one.date)}</h2>
        <p class="place">{one.hospitalName}</p>
        <p>{meaning(one)}</p>
        {one.replacedBy && (
          <Link href={`/customer/reservations/${one.replacedBy}`} class="button plain">
            {t("seeNew")}
          </Link>
        )}
        {toneOf(one.status) === "bad" && !all?.some(isCurrent) && (
          <Link href="/customer/book" class="button main">
            {t("bookAgain")}
          </Link>
        )}
        {held && (
          <div class="actions start">
            <Link href={`/customer/book?instead=${id}`} class="button plain" aria-disabled={busy}>
              {t("move")}
            </Link>
            <Button kind="danger" busy={asked} onClick={() => setAsking(true)}>
              {t("cancel")}
            </Button>
          </div>
        )}
      </article>
      <Dose one={one} held={held} />
      <Timeline one={one} />
      {asking && (
        <Dialog title={t("cancelTitle")} onClose={() => setAsking(false)}>
          <Effects of={[t("cancelEffect", one.hospitalName, longDay(one.date))]} />
          <div class="actions">
            <Button onClick={() => setAsking(false)}>{t("keepIt")}</Button>
            <Button
              kind="danger"
              onClick={() => {
                lastAnswer.set(null);
                void cancel(id, { hospital: one.hospitalName, date: one.date });
                setAsking(false);
              }}
            >
              {t("cancelIt")}
            </Button>
          </div>
        </Dialog>
      )}
    </>
  );
}

function Dose({ one, held }: { one: MyReservation; held: boolean }) {
  if (!one.vaccineCode && !held) return null;
  return (
    <section class="panel">
      <h2>{t("dose")}</h2>
      {!one.vaccineCode && <p class="soft">{t("noDoseYet")}</p>}
      <Facts
        of={[
          [t("requestedVaccine"), vaccineName(one.requestedVaccineCode)],
          ...(one.vaccineCode
            ? ([
                [t("vaccineType"), vaccineName(one.vaccineCode)],
                [t("manufacturer"), manufacturerName(one.manufacturer)],
                [t("lotNumber"), one.lotNumber],
                [t("productionDate"), plainDay(one.productionDate)],
                [t("expiryDate"), plainDay(one.expiryDate)],
                [t("quantity"), t("doses", one.quantity)],
              ] as [string, string][])
            : []),
        ]}
      />
    </section>
  );
}

function Timeline({ one }: { one: MyReservation }) {
  if (!one.timeline.length) return null;
  return (
    <section class="panel">
      <h2>{t("timeline")}</h2>
      <ol class="timeline">
        {one.timeline.map((entry, index) => (
          <li key={index} data-event={entry.event}>
            <time>{moment(entry.time?.seconds, one.timeZone)}</time>
            <p>
              <strong>{eventName(entry.event)}</strong>
            </p>
            {entry.reason && <p>{reasonText(entry.reason)}</p>}
            {entry.note && (
              <p class="said">
                <span class="soft">{t("hospitalSays")}</span> “{entry.note}”
              </p>
            )}
          </li>
        ))}
      </ol>
      <p class="soft id">
        {t("reservationId")} {one.reservationId}
      </p>
    </section>
  );
}
