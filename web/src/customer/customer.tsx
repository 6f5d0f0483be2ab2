import { useEffect } from "preact/hooks";
import { DenialReason } from "../../gen/vaccination/approval/v1/appointment_pb.js";
import { type Reservation, ReservationStatus } from "../../gen/vaccination/reservation/v1/reservation_pb.js";
import type { Answer, Ask } from "../asks.ts";
import { useValue } from "../hooks.ts";
import { nameOf, reasonText, shortDay, longDay, statusName, t } from "../i18n.ts";
import { go, match, place } from "../router.ts";
import type { Person } from "../session.ts";
import { Button, Empty, Link, Problem } from "../ui/parts.tsx";
import { Pending } from "../ui/pending.tsx";
import { say } from "../ui/toast.tsx";
import { Days } from "./days.tsx";
import { Home } from "./home.tsx";
import { Hospitals } from "./hospitals.tsx";
import { isCurrent } from "./merge.ts";
import { asks, begin, lastAnswer, mine } from "./mine.ts";
import { One } from "./one.tsx";

export function Customer({ person }: { person: Person }) {
  useEffect(() => begin(person.subject), [person.subject]);
  useSpokenChanges();
  return (
    <div class="narrow">
      <div class="news">
        <Connection />
        <Pending asks={asks} name={name} />
        <Outcome />
      </div>
      <Screen />
    </div>
  );
}

function Screen() {
  const { path, query } = useValue(place);
  const insteadOf = query.get("instead") ?? "";
  if (match("/customer", path)) return <Home />;
  if (match("/customer/book", path)) return <Hospitals insteadOf={insteadOf} />;
  const days = match("/customer/book/:hospital", path);
  if (days) return <Days key={days.hospital} hospitalId={days.hospital ?? ""} insteadOf={insteadOf} />;
  const one = match("/customer/reservations/:id", path);
  if (one) return <One key={one.id} id={one.id ?? ""} />;
  return (
    <Empty screen title={t("notFound")}>
      <Link href="/customer" class="button plain">
        {t("home")}
      </Link>
    </Empty>
  );
}

/** Says every change of a status, also to screen readers, wherever one is. */
function useSpokenChanges(): void {
  useEffect(() => {
    let before: Map<string, number> | null = null;
    return mine.subscribe(({ all }) => {
      if (!all) return;
      for (const one of all) {
        const status = before?.get(one.reservationId);
        if (status !== undefined && status !== one.status)
          say(t("changedTo", statusName(nameOf(ReservationStatus, one.status))));
      }
      before = new Map(all.map((one) => [one.reservationId, one.status]));
    });
  }, []);
}

function Connection() {
  const { connection, why, all } = useValue(mine);
  const crowded = why?.reason === "TOO_MANY_SCREENS";
  return (
    <p class={`connection ${connection}`} role="status">
      {connection === "lost" && <span class="notice wait">{crowded ? t("tooManyScreens") : t("disconnected")}</span>}
      {connection === "connecting" && !all && <span class="unseen">{t("connecting")}</span>}
    </p>
  );
}

function name(ask: Ask): string {
  const { hospital = "", date = "" } = ask.about;
  if (ask.kind === "move") return t("askMove", hospital, shortDay(date));
  if (ask.kind === "cancel") return t("askCancel", hospital, shortDay(date));
  return t("askCreate", hospital, shortDay(date));
}

/** What became of the last request; it is there until it is closed or another one begins. */
function Outcome() {
  const last = useValue(lastAnswer);
  const pending = useValue(asks.pending);
  const { path } = useValue(place);
  if (!last || pending.length) return null;
  const close = () => lastAnswer.set(null);
  if ("stopped" in last)
    return (
      <div class="notice info" role="status">
        <p>{t("stopped")}</p>
        <Button onClick={close}>{t("close")}</Button>
      </div>
    );
  if ("refused" in last)
    return (
      <div class="outcome">
        <Problem refused={last.refused} title={name(last.ask)} />
        <div class="actions">
          <Button onClick={close}>{t("close")}</Button>
        </div>
      </div>
    );
  // Elsewhere the status says it.
  if (last.ask.kind === "cancel" || (last.answer.status !== ReservationStatus.REJECTED && path !== "/customer"))
    return null;
  return <Decision last={last} onClose={close} />;
}

function Decision({
  last,
  onClose,
}: {
  last: Extract<Answer<Reservation>, { answer: Reservation }>;
  onClose: () => void;
}) {
  const { answer, ask } = last;
  const moved = ask.kind === "move";
  const { all } = useValue(mine);
  const title = `${answer.hospitalName} · ${longDay(answer.date)}`;
  if (answer.status !== ReservationStatus.REJECTED) {
    // It may have ended since, in another window or at the hospital.
    if (all?.some((one) => one.reservationId === answer.reservationId && !isCurrent(one))) return null;
    return (
      <div class="notice good" role="status">
        <p>
          <strong>{t(moved ? "moved" : "booked")}</strong>
        </p>
        <p>{title}</p>
        <div class="actions">
          <Button onClick={onClose}>{t("close")}</Button>
        </div>
      </div>
    );
  }
  const instead = moved ? `?instead=${(ask.request as { reservationId?: string }).reservationId ?? ""}` : "";
  return (
    <div class="notice bad" role="alert">
      <p>
        <strong>{t(moved ? "notMoved" : "notBooked")}</strong>
      </p>
      <p>{title}</p>
      <p>{reasonText(nameOf(DenialReason, answer.rejectionReason))}</p>
      <div class="actions">
        <Button onClick={onClose}>{t("close")}</Button>
        {answer.rejectionReason !== DenialReason.ACTIVE_BOOKING && (
          <Button
            kind="main"
            onClick={() => {
              onClose();
              go(`/customer/book/${answer.hospitalId}${instead}`);
            }}
          >
            {t("chooseAnother")}
          </Button>
        )}
      </div>
    </div>
  );
}
