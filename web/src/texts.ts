/**
 * Every text of the page, Korean first, then English. A text with numbers or names in it is a function. Names of
 * statuses, reasons and so on are keyed by the contracts' own names; a test checks that none is missing.
 */

type Text<A extends unknown[] = never[]> = readonly [
  ko: string | ((...args: A) => string),
  en: string | ((...args: A) => string),
];

const s = (n: number, one: string, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const k = (n: number) => n.toLocaleString("ko");

export const texts = {
  // The frame
  brand: ["백신 예약", "Vaccination"],
  skip: ["본문으로 건너뛰기", "Skip to the content"],
  language: ["English", "한국어"],
  signIn: ["로그인", "Sign in"],
  signOut: ["로그아웃", "Sign out"],
  areas: ["화면", "Screens"],
  customerArea: ["내 예약", "My booking"],
  managerArea: ["접종 창구", "Counter"],
  operatorArea: ["운영", "Operations"],
  welcome: ["가까운 병원에서, 원하는 날에", "At a clinic you know, on a day that suits you"],
  welcomeText: [
    "빈자리가 있는 날짜를 선택하면 바로 예약됩니다. 백신 배정부터 접종까지 모든 과정을 이 화면에서 확인할 수 있습니다.",
    "Choose a day that has places left, and the place is yours at once. This screen then shows everything, until the dose has been given.",
  ],
  signInWhy: ["예약하거나 예약을 확인하려면 로그인해 주세요.", "Sign in to book or to see your booking."],
  signInFailed: ["로그인하지 못했습니다. 다시 시도해 주세요.", "Signing in did not work."],
  noRole: ["이 계정으로 볼 수 있는 화면이 없습니다.", "There is no screen for this account."],
  startFailed: [
    "화면을 열지 못했습니다. 연결을 확인하고 다시 불러와 주세요.",
    "The page could not start. Check your connection and load it again.",
  ],
  loadAgain: ["다시 불러오기", "Load again"],
  expiredTitle: ["로그인이 만료되었습니다", "Your session has ended"],
  expiredText: [
    "다시 로그인하면 하던 일을 이어서 할 수 있습니다. 입력한 내용은 그대로 남아 있습니다.",
    "Sign in again and go on where you are. Nothing on this screen is lost.",
  ],
  signInAgain: ["다시 로그인", "Sign in again"],
  notFound: ["페이지를 찾을 수 없습니다", "There is no such screen"],
  home: ["처음 화면으로", "Back to the start"],
  back: ["뒤로", "Back"],
  close: ["닫기", "Close"],
  refresh: ["새로 고침", "Refresh"],
  tryAgain: ["다시 시도", "Try again"],
  loading: ["불러오는 중…", "Loading…"],
  working: ["처리하는 중…", "Working…"],
  done: ["완료되었습니다.", "Done."],
  asOf: [(time: string) => `${time} 기준`, (time: string) => `as of ${time}`],
  showMore: [(n: number) => `더 보기 (${k(n)})`, (n: number) => `Show more (${n.toLocaleString("en")})`],
  of: [
    (n: number, all: number) => `${k(all)}개 중 ${k(n)}개`,
    (n: number, all: number) => `${n.toLocaleString("en")} of ${all.toLocaleString("en")}`,
  ],

  // What went wrong
  failed: ["처리하지 못했습니다", "That did not work"],
  failedLoad: ["불러오지 못했습니다", "This could not be loaded"],
  lostMessage: [
    "연결이 끊겼습니다. 잠시 후 다시 시도해 주세요.",
    "The connection was lost. Please try again in a moment.",
  ],
  details: ["자세히", "Details"],

  // Requests that are repeated
  busyTitle: ["지금 신청자가 많습니다", "Many people are booking right now"],
  busyText: [
    "신청을 자동으로 다시 보내 드립니다. 버튼을 다시 누르거나 화면을 새로 고치지 않으셔도 됩니다. 중복으로 예약되지 않습니다.",
    "We repeat your request for you. There is no need to press anything or to reload, and you can never be booked twice.",
  ],
  lostTitle: ["연결을 기다리고 있습니다", "Waiting for the connection"],
  lostText: [
    "신청이 접수되었는지 확인하지 못했습니다. 같은 신청을 자동으로 다시 보내며, 중복으로 처리되지 않습니다.",
    "We could not see whether your request arrived. We repeat the very same request, and it can never count twice.",
  ],
  sending: ["보내는 중…", "Sending…"],
  againIn: [(n: number) => `${k(n)}초 뒤에 다시 보냅니다`, (n: number) => `Trying again in ${s(n, "second")}`],
  stopTrying: ["다시 보내지 않기", "Stop trying"],
  stopped: [
    "신청을 더 이상 다시 보내지 않습니다. 마지막 신청이 이미 접수되었다면 이 화면에 표시됩니다.",
    "We no longer repeat it. If the last request did arrive, the booking appears here.",
  ],
  notRepeated: [
    "더 이상 다시 보내지 않습니다. 처리되었는지 확인해 주세요.",
    "It is not sent again. Please check whether it was done.",
  ],
  askCreate: [
    (hospital: string, day: string) => `${hospital}, ${day} 예약`,
    (hospital: string, day: string) => `Booking ${hospital}, ${day}`,
  ],
  askMove: [
    (hospital: string, day: string) => `${hospital}, ${day}로 변경`,
    (hospital: string, day: string) => `Moving to ${hospital}, ${day}`,
  ],
  askCancel: [
    (hospital: string, day: string) => `${hospital}, ${day} 예약 취소`,
    (hospital: string, day: string) => `Cancelling ${hospital}, ${day}`,
  ],
  askOther: ["요청", "Request"],

  // The connection of the live screen
  live: ["실시간", "Live"],
  connecting: ["연결하는 중", "Connecting"],
  disconnected: [
    "연결이 끊겨 다시 연결하고 있습니다. 마지막으로 받은 내용을 보여 드립니다.",
    "Connection lost. Reconnecting; this is what we knew last.",
  ],
  tooManyScreens: [
    "여러 곳에서 열려 있어 이 화면은 자동으로 바뀌지 않습니다. 다른 화면을 닫아 주세요.",
    "You have this open in many places, so this one does not update by itself. Please close another.",
  ],

  // Customer
  myBooking: ["내 예약", "My booking"],
  noBooking: ["아직 예약이 없습니다", "You have no booking yet"],
  noBookingText: ["병원과 날짜를 선택하면 바로 예약됩니다.", "Choose a hospital and a day; the place is yours at once."],
  noActive: ["진행 중인 예약이 없습니다", "You have no current booking"],
  book: ["예약하기", "Book"],
  bookAgain: ["새로 예약하기", "Book again"],
  earlier: ["지난 예약", "Earlier"],
  showEarlier: ["지난 예약 더 보기", "Show earlier ones"],
  chooseHospital: ["병원 선택", "Choose a hospital"],
  moveTitle: ["예약 변경", "Move your booking"],
  moveNow: [
    (hospital: string, day: string) => `현재 예약: ${hospital}, ${day}. 변경이 확정될 때까지 그대로 유지됩니다.`,
    (hospital: string, day: string) => `You are booked at ${hospital}, ${day}. That stays as it is until the new place is yours.`,
  ],
  searchHospital: ["병원 이름", "Name of the hospital"],
  hospitalsFound: [(n: number) => `병원 ${k(n)}곳`, (n: number) => s(n, "hospital")],
  hospitalsFirst: [(n: number) => `처음 ${k(n)}곳`, (n: number) => `The first ${s(n, "hospital")}`],
  moreHospitals: ["더 보기", "Show more"],
  nearMe: ["가까운 병원부터", "Near me"],
  byName: ["이름순으로", "Not by distance"],
  nearMeFirst: [
    "가까운 병원부터 보여 드립니다. 위치는 약 1km 단위로만 전달되며 저장하지 않습니다.",
    "The nearest come first. Your place is only told to about a kilometre, and is not kept.",
  ],
  nearMeDenied: [
    "위치를 사용할 수 없도록 설정되어 있습니다. 브라우저 설정에서 허용하거나 이름으로 찾아 주세요.",
    "This browser may not tell where you are. Allow it in the browser's settings, or search by name.",
  ],
  nearMeUnknown: [
    "지금은 위치를 알 수 없습니다. 이름으로 찾아 주세요.",
    "Where you are cannot be found out at the moment. Search by name.",
  ],
  kilometres: [(n: number) => `약 ${k(n)}km`, (n: number) => `about ${n.toLocaleString("en")} km`],
  noHospital: [
    (query: string) => `'${query}' 검색 결과가 없습니다. 더 짧은 이름으로 검색해 보세요.`,
    (query: string) => `No hospital is called “${query}”. Try a shorter name.`,
  ],
  noHospitals: ["아직 등록된 병원이 없습니다.", "There are no hospitals yet."],
  sameHospital: ["현재 예약한 병원", "where your booking is"],
  chooseDay: ["날짜 선택", "Choose a day"],
  otherHospital: ["다른 병원 보기", "Other hospitals"],
  left: [(n: number) => `잔여 ${k(n)}`, (n: number) => `${n.toLocaleString("en")} left`],
  full: ["마감", "full"],
  calledOff: ["휴진", "called off"],
  yourDay: ["내 예약", "yours"],
  noDays: ["앞으로 6주 동안 예약할 수 있는 날이 없습니다.", "No days are offered in the next six weeks."],
  allFull: [
    "앞으로 6주 동안 예약이 모두 마감되었습니다. 빈자리가 생기면 이 화면에 바로 표시됩니다.",
    "No places are left in the next six weeks. When one becomes free, it appears here.",
  ],
  vaccine: ["백신", "Vaccine"],
  anyVaccine: ["상관없음 (가장 빨리 배정)", "Any (fastest)"],
  anyVaccineShort: ["상관없음", "any"],
  confirmBook: ["이 날짜로 예약할까요?", "Book this day?"],
  confirmMove: ["이 날짜로 변경할까요?", "Move to this day?"],
  bookIt: ["예약 확정", "Book it"],
  moveIt: ["변경 확정", "Move it"],
  moveEffect: [
    "변경이 확정되면 기존 예약은 자동으로 취소됩니다. 새 날짜에 자리가 없으면 기존 예약이 그대로 유지됩니다.",
    "The moment the new place is yours, the old one goes to somebody else. If it cannot be had, your booking stays as it is.",
  ],
  booked: ["예약되었습니다", "You are booked"],
  moved: ["예약이 변경되었습니다", "Your booking has moved"],
  notBooked: ["예약하지 못했습니다", "This could not be booked"],
  notMoved: ["변경하지 못했습니다. 기존 예약은 그대로 유지됩니다", "It could not be moved. Your booking is as it was"],
  chooseAnother: ["다른 날짜 선택", "Choose another day"],
  reservation: ["예약 상세", "Your reservation"],
  unknownReservation: ["이 예약을 찾을 수 없습니다.", "There is no such reservation of yours."],
  hospital: ["병원", "Hospital"],
  day: ["날짜", "Day"],
  status: ["상태", "Status"],
  reservationId: ["예약 번호", "Reservation"],
  requestedVaccine: ["희망 백신", "Asked for"],
  dose: ["배정된 백신", "Your dose"],
  vaccineType: ["백신 종류", "Vaccine type"],
  manufacturer: ["제조사", "Manufacturer"],
  lotNumber: ["로트 번호", "Lot"],
  productionDate: ["제조일자", "Produced"],
  expiryDate: ["유효기간", "Use by"],
  quantity: ["수량", "Quantity"],
  doses: [(n: number) => `${k(n)}회분`, (n: number) => s(n, "dose")],
  noDoseYet: [
    "아직 배정된 백신이 없습니다. 배정되면 여기에 바로 표시됩니다.",
    "No dose is set aside yet. It appears here as soon as one is.",
  ],
  timeline: ["진행 과정", "What has happened"],
  hospitalSays: ["병원 안내", "The hospital says"],
  cancel: ["예약 취소", "Cancel"],
  cancelTitle: ["예약을 취소할까요?", "Cancel this booking?"],
  cancelEffect: [
    (hospital: string, day: string) =>
      `${hospital}, ${day} 예약과 백신 배정이 취소됩니다. 취소는 되돌릴 수 없지만, 언제든 새로 예약할 수 있습니다.`,
    (hospital: string, day: string) =>
      `Your place at ${hospital} on ${day} and the dose go to somebody else. This cannot be undone, but you can book again at any time.`,
  ],
  cancelIt: ["예약 취소", "Cancel the booking"],
  keepIt: ["예약 유지", "Keep it"],
  move: ["날짜·병원 변경", "Move"],
  seeNew: ["새 예약 보기", "See the new one"],
  changedTo: [(status: string) => `예약 상태: ${status}`, (status: string) => `Your booking: ${status}`],

  // Manager
  today: ["오늘", "Today"],
  dayList: ["접종 명단", "The day"],
  lots: ["백신 재고", "Lots"],
  waiting: ["대기자", "Waiting"],
  places: ["정원", "Places"],
  previousDay: ["이전 날짜", "Day before"],
  nextDay: ["다음 날짜", "Day after"],
  searchDay: ["고객·예약 번호·로트 검색", "Customer, reservation or lot"],
  filter: ["상태별 보기", "Show"],
  otherState: ["기타", "other"],
  all: ["전체", "All"],
  arrived: ["도착", "arrived"],
  customer: ["고객", "Customer"],
  doseColumn: ["백신", "Dose"],
  arrivedAt: ["도착 시각", "Arrived"],
  noneOnDay: ["이 날짜에는 예약이 없습니다.", "There are no bookings on this day."],
  noMatch: ["이 날짜에는 검색한 예약이 없습니다.", "No booking of this day matches."],
  findElsewhere: [
    (who: string) => `다른 날짜에서 '${who}' 고객 찾기`,
    (who: string) => `Look for customer “${who}” on other days`,
  ],
  elsewhere: [(who: string) => `${who} 고객의 모든 예약`, (who: string) => `All bookings of ${who}`],
  noneElsewhere: ["예약이 없습니다.", "There are no bookings."],
  open: ["열기", "Open"],
  checkIn: ["도착 확인", "Check in"],
  administer: ["접종 기록", "Record the dose"],
  administerTitle: ["어떤 백신을 접종했습니까?", "Which dose was given?"],
  setAside: ["배정된 백신", "The dose set aside"],
  otherLot: ["다른 로트", "Another lot"],
  scan: ["바코드를 읽거나 로트 번호를 입력하세요", "Scan the code or type the lot number"],
  noSuchLot: [
    (lot: string) => `'${lot}' 로트는 이 병원에 없습니다.`,
    (lot: string) => `There is no lot “${lot}” here.`,
  ],
  lotUnusable: ["이 로트는 이 예약에 사용할 수 없습니다", "This lot cannot be used for this booking"],
  tooOld: ["접종일이 제조일자와 유효기간 사이에 있지 않습니다", "it is not usable on that day"],
  isWithdrawn: ["회수된 로트입니다", "it is withdrawn"],
  otherVaccine: ["고객이 다른 백신을 희망했습니다", "the customer asked for another vaccine"],
  expiresFirst: ["유효기간이 제조일자보다 빠릅니다.", "It cannot expire before it was produced."],
  isEmpty: ["남은 백신이 없습니다", "it has no dose left"],
  willHappen: ["이렇게 처리됩니다", "What this will do"],
  givenEffect: [
    (lot: string, before: number, after: number) => `로트 ${lot}: 접종 ${k(before)} → ${k(after)}`,
    (lot: string, before: number, after: number) => `Lot ${lot}: given ${before} → ${after}`,
  ],
  freeEffect: [
    (lot: string, before: number, after: number) => `로트 ${lot}: 남은 백신 ${k(before)} → ${k(after)}`,
    (lot: string, before: number, after: number) => `Lot ${lot}: free ${before} → ${after}`,
  ],
  reservedEffect: [
    (lot: string, before: number, after: number) => `로트 ${lot}: 배정 ${k(before)} → ${k(after)}`,
    (lot: string, before: number, after: number) => `Lot ${lot}: set aside ${before} → ${after}`,
  ],
  lastBookingChanges: [
    "이 로트는 모두 배정되어 있어, 가장 늦게 예약한 분께 다른 백신이 배정됩니다",
    "All doses of this lot are set aside: the booking that came last gets another one",
  ],
  missed: ["미방문", "Did not come"],
  missedTitle: ["미방문으로 기록할까요?", "Record that they did not come?"],
  missedEffect: [
    "백신은 재고로 돌아가고, 고객은 새로 예약할 수 있습니다. 당일에 늦게 방문하면 접종할 수 있습니다.",
    "The dose goes back to its lot, and the customer may book again. If they come later on the same day, they can still be given a dose.",
  ],
  assign: ["로트 지정", "Assign a lot"],
  assignTitle: ["어느 로트를 배정할까요?", "Which lot should be set aside?"],
  chooseLot: ["로트 선택", "Choose a lot"],
  noLotFits: ["이 예약에 맞는 로트가 없습니다.", "No lot suits this booking."],
  cancelDialog: ["취소", "Cancel"],
  lot: ["로트", "Lot"],
  expires: ["유효기간", "Use by"],
  free: ["남음", "free"],
  reserved: ["배정", "set aside"],
  administered: ["접종", "given"],
  writtenOff: ["폐기", "written off"],
  received: ["입고", "received"],
  withdrawn: ["회수됨", "withdrawn"],
  expired: ["유효기간 지남", "expired"],
  expiresIn: [
    (n: number) => (n === 0 ? "오늘까지" : `${k(n)}일 남음`),
    (n: number) => (n === 0 ? "today" : `in ${s(n, "day")}`),
  ],
  usableOnly: ["사용 가능한 로트만 보기", "Usable lots only"],
  noLots: ["등록된 로트가 없습니다.", "There are no lots."],
  delivery: ["입고 등록", "Take a delivery"],
  deliveryId: ["납품서 번호", "Delivery note"],
  deliveryIdHint: ["같은 납품서는 두 번 등록되지 않습니다.", "One delivery note is never taken twice."],
  deliveryNew: [
    (lot: string, n: number) => `새 로트 ${lot}: ${k(n)}회분`,
    (lot: string, n: number) => `A new lot ${lot} with ${s(n, "dose")}`,
  ],
  deliveryAdds: [
    (lot: string, before: number, after: number) => `로트 ${lot}: 입고 ${k(before)} → ${k(after)}`,
    (lot: string, before: number, after: number) => `Lot ${lot}: received ${before} → ${after}`,
  ],
  deliveryWaiting: ["대기 중인 고객에게 바로 배정됩니다.", "Customers who wait for a dose get theirs at once."],
  deliveryTaken: [(n: number) => `${k(n)}회분이 입고되었습니다.`, (n: number) => `${s(n, "dose")} taken into stock.`],
  deliveryKnown: [
    "이미 등록된 납품입니다. 변경된 내용이 없습니다.",
    "This delivery was taken before. Nothing has changed.",
  ],
  take: ["입고", "Add to stock"],
  ledger: ["입출고 내역", "Ledger"],
  noMovements: ["내역이 없습니다.", "There are no entries."],
  when: ["시각", "When"],
  what: ["내용", "What"],
  who: ["처리자", "By"],
  why: ["사유", "Why"],
  correct: ["정정", "Correct"],
  correctTitle: ["로트 정정", "Correct the lot"],
  receivedInAll: ["총 입고 수량", "Doses received in all"],
  note: ["메모", "Note"],
  noteWhy: ["사유", "Reason"],
  noteToCustomers: ["고객 안내 문구", "What customers are told"],
  correctReceived: [
    (before: number, after: number) => `입고 ${k(before)} → ${k(after)}`,
    (before: number, after: number) => `Received ${before} → ${after}`,
  ],
  correctDates: [
    (name: string, before: string, after: string) => `${name} ${before} → ${after}`,
    (name: string, before: string, after: string) => `${name} ${before} → ${after}`,
  ],
  tooFewFor: [
    (n: number) => `배정된 예약 ${k(n)}건은 다른 백신을 배정받거나 대기합니다`,
    (n: number) => `${s(n, "booking gets", "bookings get")} another dose, or ${n === 1 ? "waits" : "wait"}`,
  ],
  reservedLooked: [
    (n: number) =>
      `이 로트가 배정된 예약 ${k(n)}건을 다시 확인합니다. 사용할 수 없게 되면 다른 백신을 배정받거나 대기합니다`,
    (n: number) =>
      `${s(n, "booking")} on this lot will be checked again: whoever is left without a usable dose gets another one, or waits`,
  ],
  bookingsToGo: [
    (n: number) => (n ? `예약 ${k(n)}건을 처리하고 있습니다.` : "모든 예약이 처리되었습니다."),
    (n: number) => (n ? `${s(n, "booking")} still to go.` : "All bookings are dealt with."),
  ],
  writeOff: ["폐기", "Write off"],
  writeOffTitle: ["백신 폐기", "Write doses off"],
  howMany: ["수량", "How many"],
  reason: ["사유", "Reason"],
  recall: ["회수", "Recall"],
  recallTitle: ["로트 회수", "Recall this lot"],
  recallEffect: [
    (free: number, reserved: number, given: number) =>
      `남은 ${k(free)}회분은 폐기되고, 배정된 예약 ${k(reserved)}건은 다른 백신을 배정받거나 기존 순서대로 대기합니다. 이 로트로 접종받은 ${k(given)}명의 명단을 확인할 수 있습니다. 회수는 되돌릴 수 없습니다.`,
    (free: number, reserved: number, given: number) =>
      `${s(free, "free dose is", "free doses are")} written off. ${s(reserved, "booking gets", "bookings get")} another dose, or ${reserved === 1 ? "waits" : "wait"} where ${reserved === 1 ? "it was" : "they were"} in the queue. You get the list of ${s(given, "person", "people")} who had a dose. This cannot be undone.`,
  ],
  recallHere: ["이 병원의 재고에만 적용됩니다.", "It applies to this hospital's stock."],
  recallIt: ["회수 처리", "Recall it"],
  recallProgress: [
    (off: number, again: number, wait: number) => `폐기 ${k(off)} · 다른 백신 배정 ${k(again)} · 대기 ${k(wait)}`,
    (off: number, again: number, wait: number) => `${off} written off · ${again} got another dose · ${wait} wait`,
  ],
  vaccinated: ["접종받은 고객", "Who had a dose"],
  nobodyVaccinated: ["이 로트로 접종받은 사람이 없습니다.", "Nobody was given a dose of it."],
  nobodyWaits: ["대기 중인 고객이 없습니다.", "Nobody is waiting for a dose."],
  position: ["순서", "Place"],
  since: ["예약 시각", "Since"],
  waitingText: ["예약된 순서대로 백신이 배정됩니다.", "Doses are given out in this order."],
  capacity: ["정원", "Places"],
  approved: ["예약", "Booked"],
  leftColumn: ["남음", "Left"],
  over: [(n: number) => `${k(n)}명 초과`, (n: number) => `${n} too many`],
  setCapacity: ["정원 변경", "Change places"],
  firstDay: ["시작일", "First day"],
  lastDay: ["종료일", "Last day"],
  perDay: ["하루 정원", "Places a day"],
  capacityEffect: [
    (days: number, changed: number) => `${k(days)}일 중 ${k(changed)}일의 정원이 바뀝니다`,
    (days: number, changed: number) => `${changed} of ${s(days, "day")} ${changed === 1 ? "gets" : "get"} another number of places`,
  ],
  capacityOver: [
    (day: string, over: number) =>
      `${day}: 예약이 정원보다 ${k(over)}건 많아집니다. 이미 예약한 고객은 유지되고, 새 예약만 받지 않습니다`,
    (day: string, over: number) =>
      `${day}: ${s(over, "booking")} more than places. Existing bookings stay; new ones are refused`,
  ],
  badRange: ["종료일이 시작일보다 빠릅니다.", "The last day is before the first."],
  capacitySet: [
    (n: number) => (n ? `${k(n)}일의 정원을 바꾸었습니다.` : "변경된 내용이 없습니다."),
    (n: number) => (n ? `Places of ${s(n, "day")} changed.` : "There was nothing to change."),
  ],
  callOff: ["휴진", "Call off"],
  callOffTitle: [(day: string) => `${day} 휴진`, (day: string) => `Call off ${day}`],
  callOffEffect: [
    (n: number) =>
      `예약 ${k(n)}건이 종료되고, 백신은 재고로 돌아갑니다. 위 안내 문구가 고객에게 전해지며, 고객은 바로 새로 예약할 수 있습니다. 이미 접종한 고객은 영향을 받지 않습니다. 종료된 예약은 되돌릴 수 없습니다.`,
    (n: number) =>
      `${s(n, "booking ends", "bookings end")}, and the doses go back into stock. The customers are told the words above and may book again at once. Nothing changes for those who were vaccinated already. Bookings that have ended do not come back.`,
  ],
  callOffIt: ["휴진 처리", "Call it off"],
  reopen: ["휴진 해제", "Reopen"],
  reopenTitle: [(day: string) => `${day} 휴진을 해제할까요?`, (day: string) => `Reopen ${day}?`],
  reopenEffect: [
    (n: number) => `${k(n)}자리를 다시 예약할 수 있습니다. 휴진으로 종료된 예약은 복구되지 않습니다.`,
    (n: number) => `${s(n, "place")} can be booked again. Bookings that ended do not come back.`,
  ],
  noCapacity: ["정원이 설정된 날짜가 없습니다.", "No days have places yet."],

  // Operator
  flow: ["흐름", "The flow"],
  flowText: ["최근 10분, 2초마다", "The last ten minutes, every two seconds"],
  bookings: ["예약", "Bookings"],
  bookingsHint: ["초당 승인", "granted, a second"],
  completions: ["완료", "Completions"],
  completionsHint: ["초당 백신 배정", "given a dose, a second"],
  breaker: ["거절과 서킷 브레이커", "Refusals and the circuit breaker"],
  breakerHint: ["초당", "a second"],
  denied: ["승인이 거절함", "denied by approval"],
  turnedAway: ["승인이 바빠 돌려보냄", "turned away since approval is busy"],
  toCompletion: ["완료까지", "Time to completion"],
  toCompletionHint: ["승인에서 백신 배정까지, 초", "from approval to a dose, in seconds"],
  mean: ["평균", "mean"],
  p99: ["99%는 더 빠름", "99 % are faster"],
  service: ["서비스", "Service"],
  outbox: ["아웃박스", "Outbox"],
  outboxHint: ["커밋되었고 아직 발행되지 않은 이벤트", "events committed and not yet published"],
  outboxAge: ["가장 오래된 것", "Oldest"],
  lag: ["지연", "Lag"],
  lagHint: ["아직 전달되지 않은 이벤트", "events not delivered yet"],
  inFlight: ["처리 중", "In flight"],
  inFlightHint: ["전달되었고 확인 응답을 기다리는 이벤트", "events delivered and not acknowledged"],
  redelivered: ["재전달", "Redelivered"],
  deadLetters: ["데드 레터", "Dead letters"],
  deadLettersHint: ["처리하지 못한 이벤트", "events that could not be handled"],
  parked: ["보관", "Set aside"],
  pausedUntil: [(time: string) => `${time}까지 멈춤`, (time: string) => `paused until ${time}`],
  running: ["정상", "running"],
  unreachable: ["응답 없음", "no answer"],
  seconds: [(n: string) => `${n}초`, (n: string) => `${n} s`],
  noDeadLetters: ["데드 레터가 없습니다. 모든 이벤트가 처리되었습니다.", "There are none: every event was handled."],
  event: ["이벤트", "Event"],
  tries: [(n: number) => `${k(n)}번째 시도`, (n: number) => s(n, "try", "tries")],
  payload: ["내용", "Content"],
  history: ["실패 기록", "What failed"],
  redrive: ["다시 처리", "Redrive"],
  redriveOneEffect: [
    "처리되면 목록에서 사라지고, 다시 실패하면 새 번호로 남습니다. 여러 번 해도 안전합니다.",
    "If it is handled, it leaves the list. If it fails again, it stays under a new number. It is safe to repeat.",
  ],
  redriveAll: ["모두 다시 처리", "Redrive all"],
  redriveAllTitle: [
    (service: string, n: number) => `${service}의 데드 레터 ${k(n)}개를 모두 다시 처리할까요?`,
    (service: string, n: number) => `Redrive all ${s(n, "dead letter")} of ${service}?`,
  ],
  redriveAllEffect: [
    "오래된 것부터 하나씩 처리합니다. 창을 닫으면 지금 처리하는 것까지만 하고 멈춥니다.",
    "One after the other, oldest first. When you close this, it stops after the one in hand.",
  ],
  redriveProgress: [
    (ok: number, bad: number, left: number) => `처리 ${k(ok)} · 실패 ${k(bad)} · 남음 ${k(left)}`,
    (ok: number, bad: number, left: number) => `${ok} handled · ${bad} failed again · ${left} left`,
  ],
  discard: ["포기", "Discard"],
  discardEffect: [
    "이 서비스는 이 이벤트를 영영 처리하지 않습니다. 누가 왜 포기했는지는 기록으로 남습니다.",
    "This service will never handle it. Who gave it up, and why, is kept.",
  ],
  discardIt: ["포기하기", "Give it up"],
  books: ["장부 검산", "The books"],
  booksText: [
    "저장소의 수량과 이벤트에서 따로 계산한 수량을 하나하나 비교합니다. 아무것도 바꾸지 않습니다.",
    "Adds everything up twice, from the store and independently from the events, and names every difference. It changes nothing.",
  ],
  placesBooks: ["자리 (승인)", "Places (approval)"],
  stockBooks: ["재고 (백신관리)", "Stock (vaccine management)"],
  check: ["검산하기", "Check"],
  checking: [
    (toGo: number, accounts: number) => `이벤트 ${k(toGo)}개 남음, 계정 ${k(accounts)}개 비교함`,
    (toGo: number, accounts: number) => `${s(toGo, "event")} to go, ${s(accounts, "account")} compared`,
  ],
  booksAgree: [(n: number) => `계정 ${k(n)}개가 모두 일치합니다.`, (n: number) => `All ${s(n, "account")} agree.`],
  booksDiffer: [(n: number) => `일치하지 않는 곳이 ${k(n)}개 있습니다.`, (n: number) => `${s(n, "difference")}.`],
  booksIncomplete: [
    "스트림에 처음부터의 이벤트가 모두 있지는 않아, 그에 걸리는 계정은 비교하지 않았습니다.",
    "The stream no longer has every event since the beginning; accounts touched by that were not compared.",
  ],
  account: ["계정", "Account"],
  whatDiffers: ["항목", "What"],
  byStore: ["저장소", "Store"],
  byOther: ["다른 계산", "Counted otherwise"],
  ranOut: ["중간에 끊겼습니다. 다시 검산해 주세요.", "It broke off. Check again."],
  chooseHospitalOperator: ["병원", "Hospital"],
  plotLabel: [
    (name: string, now: string) => `${name}, 지금: ${now}`,
    (name: string, now: string) => `${name}, now: ${now}`,
  ],
} satisfies Record<string, Text<any[]>>;

/** ReservationStatus: a short name, and what it means for the customer. */
export const reservationStatus = {
  UNSPECIFIED: [
    ["확인 중", "Being looked up"],
    ["", ""],
  ],
  APPROVED: [
    ["예약됨 · 백신 배정 중", "Booked · a dose is being chosen"],
    ["예약이 확정되었습니다. 백신을 배정하고 있습니다.", "Your place is certain. A dose is being chosen for you."],
  ],
  REJECTED: [
    ["예약되지 않음", "Not booked"],
    ["예약 신청이 승인되지 않았습니다.", "Your request was refused."],
  ],
  COMPLETED: [
    ["예약 완료", "All set"],
    [
      "예약과 백신 배정이 모두 완료되었습니다. 예약일에 병원을 방문해 주세요.",
      "Your place and your dose are ready. Come to the hospital on the day.",
    ],
  ],
  CANCEL_REQUESTED: [
    ["취소 처리 중", "Being cancelled"],
    ["취소 신청이 접수되었습니다. 배정된 백신을 반환하고 있습니다.", "You have cancelled. The dose is on its way back."],
  ],
  CANCELLED: [
    ["취소됨", "Cancelled"],
    ["예약이 취소되었습니다.", "The booking is cancelled."],
  ],
  MOVED: [
    ["변경됨", "Moved"],
    ["다른 날짜나 병원으로 예약을 변경했습니다.", "You moved to another day or hospital."],
  ],
  CALLED_OFF: [
    ["병원 휴진", "Called off by the hospital"],
    [
      "병원 사정으로 이날은 접종하지 않습니다. 바로 새로 예약할 수 있습니다.",
      "The hospital called the day off. You may book again at once.",
    ],
  ],
  UNSERVED: [
    ["백신 부족으로 종료", "No dose came in time"],
    [
      "예약일까지 백신이 배정되지 않았습니다. 불편을 드려 죄송합니다. 새로 예약해 주세요.",
      "The day was over before a dose came. We are sorry; please book again.",
    ],
  ],
  MISSED: [
    ["미방문", "Missed"],
    ["예약일에 방문하지 않은 것으로 기록되었습니다.", "You did not come on the day."],
  ],
  ADMINISTERED: [
    ["접종 완료", "Vaccinated"],
    ["접종을 마쳤습니다.", "The dose was given."],
  ],
} as const;

/** VaccinationStatus, as the counter says it. */
export const vaccinationStatus = {
  UNSPECIFIED: ["확인 중", "unknown"],
  WAITING: ["백신 대기", "waits for a dose"],
  COMPLETED: ["백신 배정됨", "dose set aside"],
  CANCELLED: ["취소됨", "cancelled"],
  ADMINISTERED: ["접종 완료", "dose given"],
  MISSED: ["미방문", "missed"],
  UNSERVED: ["백신 부족 종료", "no dose in time"],
} as const;

/** Events on the timeline. */
export const event = {
  ApprovalGranted: ["예약이 승인되었습니다", "Your booking was approved"],
  ApprovalDenied: ["예약이 승인되지 않았습니다", "Your booking was not approved"],
  ApprovalRevoked: ["승인이 취소되었습니다", "The approval was taken back"],
  ApprovalReleased: ["예약 자리가 반환되었습니다", "Your place is free for others"],
  ReservationPlaced: ["예약이 접수되었습니다", "Your booking was registered"],
  ReservationRejected: ["예약 신청이 거절되었습니다", "Your request was refused"],
  CancellationRequested: ["예약 취소를 신청했습니다", "You asked to cancel"],
  ReservationCompleted: ["백신이 배정되었습니다", "A dose was set aside for you"],
  ReservationWaiting: ["백신 배정을 기다리고 있습니다", "You are waiting for a dose"],
  CancellationCompleted: ["배정된 백신이 반환되었습니다", "The dose went back"],
  VaccinationCheckedIn: ["병원에 도착했습니다", "You arrived at the hospital"],
  VaccinationAdministered: ["접종을 받았습니다", "You were vaccinated"],
  VaccinationMissed: ["예약일에 방문하지 않았습니다", "You did not come"],
  VaccinationUnserved: ["백신이 배정되지 않은 채 예약일이 지났습니다", "The day was over without a dose"],
} as const;

/** Why something happened: values of DenialReason, RevocationReason and DoseChangeReason without their prefixes. */
export const because = {
  DAY_FULL: ["이 날짜는 예약이 마감되었습니다.", "Every place of that day was taken."],
  DAY_NOT_OFFERED: ["이 병원은 이 날짜에 접종하지 않습니다.", "The hospital does not vaccinate on that day."],
  ACTIVE_BOOKING: [
    "이미 다른 예약이 있습니다. 그 예약을 변경하거나 취소해 주세요.",
    "You hold another booking. Move or cancel that one instead.",
  ],
  DAY_CALLED_OFF: ["병원 사정으로 이날은 접종하지 않습니다.", "The hospital called the day off."],
  VACCINE_NOT_OFFERED: ["이 병원에서는 선택한 백신을 접종하지 않습니다.", "The hospital does not offer that vaccine."],
  MOVED: ["다른 날짜나 병원으로 변경했습니다.", "You moved to another day or hospital."],
  LOT_RECALLED: ["먼저 배정된 백신의 로트가 회수되었습니다.", "The lot of the dose before was recalled."],
  LOT_CORRECTED: ["먼저 배정된 로트의 정보가 정정되었습니다.", "The lot of the dose before was corrected."],
  DOSES_WRITTEN_OFF: ["먼저 배정된 백신을 사용할 수 없게 되었습니다.", "The dose before can no longer be used."],
  MANAGER: ["병원이 다른 로트를 지정했습니다.", "The hospital chose another lot."],
  EXCHANGED: [
    "먼저 배정된 백신은 그 백신만 접종할 수 있는 분께 배정되었습니다.",
    "The dose before went to somebody for whom no other one is suitable.",
  ],
  GIVEN_TO_ANOTHER: [
    "먼저 배정된 백신이 창구에서 다른 분께 접종되었습니다.",
    "The dose before was given to somebody else at the counter.",
  ],
} as const;

export const movementKind = {
  UNSPECIFIED: ["알 수 없음", "unknown"],
  RECEIVED: ["입고", "delivered"],
  CORRECTED: ["정정", "corrected"],
  RESERVED: ["배정", "set aside"],
  RETURNED: ["반환", "given back"],
  ADMINISTERED: ["접종", "given"],
  WRITTEN_OFF: ["폐기", "written off"],
  OPENED: ["장부 시작", "ledger opened"],
  UNRECORDED: ["업데이트 중 변동", "moved during an update"],
} as const;

export const writeOffReason = {
  UNSPECIFIED: ["", ""],
  BROKEN: ["파손", "broken or spilt"],
  COLD_CHAIN: ["저온 유지 중단", "cold chain interrupted"],
  EXPIRED: ["유효기간 경과", "expired"],
  RECALLED: ["회수", "recalled"],
  LOST: ["분실", "lost"],
} as const;

/** Reasons of errors, without their domains: a reason means the same wherever it comes from. */
export const errorReason = {
  UNSPECIFIED: ["알 수 없는 오류입니다.", "Unknown error."],
  // edge
  INVALID_FIELD: ["입력한 값을 확인해 주세요.", "Please check what you entered."],
  TOKEN_MISSING: ["로그인이 필요합니다.", "Please sign in."],
  ROLE_NOT_ALLOWED: ["이 계정에는 권한이 없습니다.", "This account may not do that."],
  OTHER_HOSPITAL: ["다른 병원의 업무는 처리할 수 없습니다.", "This account is for another hospital."],
  STORE_UNAVAILABLE: [
    "저장소에 연결할 수 없습니다. 다시 시도해 주세요.",
    "The store cannot be reached. Please try again.",
  ],
  INTERNAL: ["오류가 발생했습니다. 다시 시도해 주세요.", "Something broke. Please try again."],
  INVALID_PAGE_TOKEN: [
    "목록이 바뀌었습니다. 처음부터 다시 불러와 주세요.",
    "The list has changed. Please load it again.",
  ],
  TOKEN_INVALID: ["로그인이 만료되었습니다.", "Your session has ended."],
  MALFORMED_REQUEST: ["요청 형식이 올바르지 않습니다.", "The request could not be understood."],
  UNKNOWN_METHOD: [
    "이 버전에서는 지원하지 않는 기능입니다. 업데이트 중이라면 잠시 후 다시 시도해 주세요.",
    "This version cannot do that. If an update is under way, try again shortly.",
  ],
  REQUEST_TOO_LARGE: ["한 번에 보내기에는 너무 많습니다.", "That is too much at once."],
  OVERLOADED: [
    "지금 요청이 많습니다. 잠시 후 다시 시도해 주세요.",
    "Too many calls at once. Please try again shortly.",
  ],
  RATE_LIMITED: [
    "요청이 너무 잦습니다. 잠시 후 다시 시도해 주세요.",
    "Too many calls from here. Please try again shortly.",
  ],
  STOPPING: ["서버가 교체되고 있습니다. 다시 시도해 주세요.", "This replica is about to stop. Please try again."],
  TIMED_OUT: ["제때 응답을 받지 못했습니다. 다시 시도해 주세요.", "No answer came in time. Please try again."],
  UNREACHABLE: ["서비스에 연결할 수 없습니다. 다시 시도해 주세요.", "The service cannot be reached. Please try again."],
  // approval
  UNKNOWN_HOSPITAL: ["병원을 찾을 수 없습니다.", "There is no such hospital."],
  DATE_PASSED: [
    "이미 지난 날짜입니다. 오늘 이후의 날짜를 선택해 주세요.",
    "That day has passed. Choose today or later.",
  ],
  REQUEST_ID_REUSED: [
    "같은 요청 번호가 다른 내용에 쓰였습니다. 다시 시도해 주세요.",
    "That request id was used for something else. Please try again.",
  ],
  UNKNOWN_TIME_ZONE: ["알 수 없는 시간대입니다.", "There is no such time zone."],
  DATE_RANGE: ["종료일이 시작일보다 빠릅니다.", "The last day is before the first."],
  CAPACITY_BELOW_APPROVED: ["정원이 이미 예약된 인원보다 적습니다.", "That is fewer places than are booked."],
  TOO_MANY_REFUSALS: [
    "예약하지 못했습니다. 빈자리가 있는 날짜를 선택해 주세요.",
    "The answer is no. Please choose a day that has places left.",
  ],
  NOTHING_TO_MOVE: [
    "이미 종료된 예약이라 변경할 수 없습니다.",
    "This booking holds no place any more: there is nothing to move.",
  ],
  DAY_CALLED_OFF: ["휴진일입니다. 먼저 휴진을 해제해 주세요.", "The day is called off. Reopen it first."],
  NOTHING_TO_CALL_OFF: ["이미 지난 날짜입니다.", "That day has passed: there is nothing to call off."],
  // reservation
  APPROVAL_BUSY: [
    "지금 신청이 많습니다. 잠시 후 다시 시도해 주세요.",
    "Many people are booking. Please try again shortly.",
  ],
  UNKNOWN_RESERVATION: ["예약을 찾을 수 없습니다.", "There is no such reservation."],
  REJECTED: ["승인되지 않은 예약이므로 취소할 내용이 없습니다.", "It was refused: there is nothing to cancel."],
  APPOINTMENT_PASSED: ["예약일이 지나 취소할 수 없습니다.", "The day has passed: it can no longer be cancelled."],
  UNKNOWN_STATUS: [
    "업데이트 중입니다. 끝난 뒤에 다시 시도해 주세요.",
    "An update is under way. Please try again when it is over.",
  ],
  ALREADY_ADMINISTERED: ["이미 접종을 마쳤습니다.", "The dose was given already."],
  ENDED: ["이미 종료된 예약입니다.", "The reservation has ended already."],
  // vaccinemgmt
  EXPIRY_BEFORE_PRODUCTION: ["유효기간이 제조일자보다 빠릅니다.", "It cannot expire before it was produced."],
  LOT_CONFLICT: [
    "같은 로트나 납품서가 다른 내용으로 등록되어 있습니다.",
    "This lot or delivery note is registered with other content.",
  ],
  UNKNOWN_VACCINATION: ["예약을 찾을 수 없습니다.", "There is no such booking."],
  UNKNOWN_LOT: ["로트를 찾을 수 없습니다.", "There is no such lot."],
  VACCINATION_CANCELLED: ["취소된 예약입니다.", "The booking is cancelled."],
  LOT_EMPTY: ["이 로트에는 남은 백신이 없습니다.", "This lot has no free dose."],
  LOT_NOT_VALID: ["이 로트는 접종일에 사용할 수 없습니다.", "This lot is not usable on that day."],
  LOT_OTHER_VACCINE: ["고객이 다른 백신을 희망했습니다.", "The customer asked for another vaccine."],
  LOT_WITHDRAWN: [
    "회수된 로트입니다. 접종에 사용하면 안 됩니다.",
    "This lot is withdrawn: nobody may be given a dose of it.",
  ],
  TOO_FEW_DOSES: ["입력한 수량만큼 백신이 남아 있지 않습니다.", "The lot does not have that many doses any more."],
  TOO_MANY_BOOKED: [
    "한 번에 변경하기에는 배정된 예약이 너무 많습니다. 나누어 처리하거나 로트를 회수해 주세요.",
    "Too many bookings would have to change at once. Do it in parts, or recall the lot.",
  ],
  WRONG_DAY: ["예약일이 아닙니다.", "That is not the day of the appointment."],
  NO_DOSE: ["배정된 백신이 없습니다. 접종한 로트를 알려 주세요.", "No dose is set aside. Name the lot that was given."],
  VACCINATION_ENDED: ["이미 종료된 예약입니다.", "The booking has ended."],
  UNKNOWN_RECALL: ["회수 기록을 찾을 수 없습니다.", "There is no such recall."],
  // mypage
  REBUILD_RUNNING: ["이미 다시 만들고 있습니다.", "A rebuild is running already."],
  TOO_MANY_SCREENS: [
    "여러 곳에서 이 화면을 보고 있습니다. 다른 화면을 닫아 주세요.",
    "You have this open in too many places. Please close one.",
  ],
  NEWER_EVENTS: [
    "더 새로운 버전이 처리한 이벤트가 있습니다.",
    "A newer version has handled events that this one does not know.",
  ],
  // operations
  UNKNOWN_DEAD_LETTER: [
    "데드 레터를 찾을 수 없습니다. 이미 처리되었을 수 있습니다.",
    "There is no such dead letter. It may have been handled.",
  ],
  OTHER_SERVICE: ["다른 서비스가 답했습니다.", "Another service answered."],
  STREAM_UNAVAILABLE: [
    "이벤트 스트림에 연결할 수 없습니다. 다시 시도해 주세요.",
    "The event stream cannot be reached. Please try again.",
  ],
  PERSON_ACTIVE: ["끝나지 않은 예약이 있습니다.", "The person has a booking that is not over."],
  NO_BOOKS: ["이 서비스에는 장부가 없습니다.", "This service keeps no books."],
} as const;

/** CVX codes that are met here; any other is shown as its number. */
export const vaccines: Record<string, readonly [string, string]> = {
  "150": ["인플루엔자 4가", "Influenza, quadrivalent"],
  "158": ["인플루엔자 4가 (다회용)", "Influenza, quadrivalent (multi-dose)"],
  "207": ["코로나19 mRNA (모더나)", "COVID-19 mRNA (Moderna)"],
  "208": ["코로나19 mRNA (화이자)", "COVID-19 mRNA (Pfizer)"],
  "210": ["코로나19 벡터 (아스트라제네카)", "COVID-19 vector (AstraZeneca)"],
  "211": ["코로나19 단백질 (노바백스)", "COVID-19 protein (Novavax)"],
  "212": ["코로나19 벡터 (얀센)", "COVID-19 vector (Janssen)"],
};

/** MVX codes. */
export const manufacturers: Record<string, readonly [string, string]> = {
  ASZ: ["아스트라제네카", "AstraZeneca"],
  JSN: ["얀센", "Janssen"],
  MOD: ["모더나", "Moderna"],
  NVX: ["노바백스", "Novavax"],
  PFR: ["화이자", "Pfizer"],
  SKB: ["글락소스미스클라인", "GlaxoSmithKline"],
};
